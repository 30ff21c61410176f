"""The plain PyTorch backend: that its short cuts are exact, and its memory bounded."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ince.errors import QuantError
from ince.ops import QUANT_TYPES, code_of, reference
from ince.ops.reference import four_bit


def quantize_4bit(weight, blocksize=64, quant_type="nf4", scale_search=False):
    return reference.quantize_4bit(weight, blocksize, quant_type, scale_search)


def dequantize_4bit(packed, absmax, blocksize, shape, quant_type="nf4"):
    return reference.dequantize_4bit(
        packed, absmax, None, None, blocksize, shape, torch.float32, quant_type
    )


def plainly(packed, absmax, blocksize, num_weights, quant_type="nf4"):
    """Dequantization without a short cut."""
    code = torch.stack([packed[:, 0] >> 4, packed[:, 0] & 15], dim=1).flatten()[:num_weights]
    scale = absmax.repeat_interleave(blocksize)[:num_weights]
    return code_of(quant_type)[code.long()] * scale


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_every_byte_expands_to_its_pair(quant_type):
    packed = torch.arange(256, dtype=torch.uint8)[:, None]
    absmax = torch.rand(8) + 0.5
    result = dequantize_4bit(packed, absmax, 64, (512,), quant_type)
    assert torch.equal(result, plainly(packed, absmax, 64, 512, quant_type))


@pytest.mark.parametrize("scale_search", [False, True])
@pytest.mark.parametrize("num_weights", [1, 63, 64, 255, 256, 257, 1000, 4097])
@pytest.mark.parametrize("blocksize", [32, 64, 128])
def test_pieces_do_not_show(monkeypatch, num_weights, blocksize, scale_search):
    weight = torch.randn(num_weights, generator=torch.Generator().manual_seed(1))
    packed, absmax = quantize_4bit(weight, blocksize, "nf4", scale_search)
    whole = dequantize_4bit(packed, absmax, blocksize, (num_weights,))
    assert torch.equal(whole, plainly(packed, absmax, blocksize, num_weights))
    monkeypatch.setattr(four_bit, "_PIECE", 256)
    in_pieces = quantize_4bit(weight, blocksize, "nf4", scale_search)
    assert torch.equal(in_pieces[0], packed)
    assert torch.equal(in_pieces[1], absmax)
    assert torch.equal(dequantize_4bit(packed, absmax, blocksize, (num_weights,)), whole)


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


@pytest.mark.parametrize("scale_search", [False, True])
def test_intermediate_values_are_bounded(monkeypatch, scale_search):
    monkeypatch.setattr(four_bit, "_PIECE", 4096)
    weight = torch.randn(16, 4096).bfloat16()
    packed, absmax = quantize_4bit(weight)
    with LargestTensor() as largest:
        quantize_4bit(weight, 64, "nf4", scale_search)
    assert largest.num_bytes == packed.numel()
    with LargestTensor() as largest:
        reference.dequantize_4bit(
            packed, absmax, None, None, 64, weight.shape, torch.bfloat16, "nf4"
        )
    assert largest.num_bytes == weight.numel() * 2


def test_non_finite_weights_are_counted():
    weight = torch.ones(3, 100)
    weight[0, 5] = float("nan")
    weight[2, 7] = float("inf")
    weight[2, 99] = -float("inf")
    with pytest.raises(QuantError, match="3 of 300 weights are not finite") as caught:
        quantize_4bit(weight)
    assert caught.value.got == "1 NaN, 2 infinite"


def test_the_input_is_left_as_it_is():
    weight = torch.randn(130)
    before = weight.clone()
    packed, absmax = quantize_4bit(weight)
    kept = packed.clone(), absmax.clone()
    dequantize_4bit(packed, absmax, 64, (130,))
    assert torch.equal(weight, before)
    assert torch.equal(packed, kept[0])
    assert torch.equal(absmax, kept[1])
