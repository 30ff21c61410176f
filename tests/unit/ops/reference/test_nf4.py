"""The plain PyTorch backend: that its short cuts are exact, and its memory bounded."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ince.errors import QuantError
from ince.ops import NF4_CODE, dequantize_nf4, quantize_nf4
from ince.ops.reference import nf4


def plainly(packed, absmax, blocksize, num_weights):
    """Dequantization without a short cut."""
    code = torch.stack([packed[:, 0] >> 4, packed[:, 0] & 15], dim=1).flatten()[:num_weights]
    scale = absmax.repeat_interleave(blocksize)[:num_weights]
    return torch.tensor(NF4_CODE)[code.long()] * scale


def test_cells_find_what_a_search_finds():
    code = torch.tensor(NF4_CODE)
    thresholds = (code[:-1] + code[1:]) / 2
    near = [thresholds]
    for end in (-2.0, 2.0):
        step = thresholds
        for _ in range(3):
            step = torch.nextafter(step, torch.full_like(step, end))
            near.append(step)
    # Borders of cells, where the cell itself could be off by one.
    borders = torch.linspace(-1, 1, 33)
    near += [borders, torch.nextafter(borders, torch.zeros(33))]
    values = torch.cat([*near, torch.linspace(-1, 1, 200_001), torch.tensor([-0.0, 1e-38])])
    expected = torch.bucketize(values, thresholds).to(torch.uint8)
    assert torch.equal(nf4._nearest(values), expected)


def test_every_byte_expands_to_its_pair():
    packed = torch.arange(256, dtype=torch.uint8)[:, None]
    absmax = torch.rand(8) + 0.5
    result = dequantize_nf4(packed, absmax, 64, (512,))
    assert torch.equal(result, plainly(packed, absmax, 64, 512))


@pytest.mark.parametrize("num_weights", [1, 63, 64, 255, 256, 257, 1000, 4097])
@pytest.mark.parametrize("blocksize", [32, 64, 128])
def test_pieces_do_not_show(monkeypatch, num_weights, blocksize):
    weight = torch.randn(num_weights, generator=torch.Generator().manual_seed(1))
    packed, absmax = quantize_nf4(weight, blocksize)
    whole = dequantize_nf4(packed, absmax, blocksize, (num_weights,))
    assert torch.equal(whole, plainly(packed, absmax, blocksize, num_weights))
    monkeypatch.setattr(nf4, "_PIECE", 256)
    in_pieces = quantize_nf4(weight, blocksize)
    assert torch.equal(in_pieces[0], packed)
    assert torch.equal(in_pieces[1], absmax)
    assert torch.equal(dequantize_nf4(packed, absmax, blocksize, (num_weights,)), whole)


class LargestTensor(TorchDispatchMode):
    """The most bytes of any tensor that an operation makes; views make nothing."""

    def __init__(self):
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not func.is_view:
            self.num_bytes = max(self.num_bytes, result.numel() * result.element_size())
        return result


def test_intermediate_values_are_bounded(monkeypatch):
    monkeypatch.setattr(nf4, "_PIECE", 4096)
    weight = torch.randn(16, 4096).bfloat16()
    packed, absmax = quantize_nf4(weight)
    with LargestTensor() as largest:
        nf4.quantize(weight, 64)
    assert largest.num_bytes == packed.numel()
    with LargestTensor() as largest:
        nf4.dequantize(packed, absmax, 64, weight.shape, torch.bfloat16)
    assert largest.num_bytes == weight.numel() * 2


def test_non_finite_weights_are_counted():
    weight = torch.ones(3, 100)
    weight[0, 5] = float("nan")
    weight[2, 7] = float("inf")
    weight[2, 99] = -float("inf")
    with pytest.raises(QuantError, match="3 of 300 weights are not finite") as caught:
        quantize_nf4(weight)
    assert caught.value.got == "1 NaN, 2 infinite"


def test_the_input_is_left_as_it_is():
    weight = torch.randn(130)
    before = weight.clone()
    packed, absmax = quantize_nf4(weight)
    kept = packed.clone(), absmax.clone()
    dequantize_nf4(packed, absmax, 64, (130,))
    assert torch.equal(weight, before)
    assert torch.equal(packed, kept[0])
    assert torch.equal(absmax, kept[1])
