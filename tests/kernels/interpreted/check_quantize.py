"""Packing and expanding in Triton's interpreter, against the reference to the bit."""

import pytest
import torch

from ince.errors import QuantError
from ince.ops import BLOCKSIZES, QUANT_TYPES, reference
from ince.ops.triton import launch, proof

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def same_bits(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    found, expected = (tensor.reshape(-1).view(torch.uint8) for tensor in (found, expected))
    assert torch.equal(found, expected)


def weights(num_weights, dtype=torch.float32, blocksize=64, seed=0):
    """Blocks of many magnitudes, one of zeros, with values on and beside the midpoints."""
    weight = torch.randn(num_weights, generator=torch.Generator().manual_seed(seed))
    num_blocks = num_weights // blocksize
    if num_blocks:
        blocks = weight[: num_blocks * blocksize].view(num_blocks, blocksize)
        least = -7 if dtype == torch.float16 else -42
        blocks *= torch.logspace(least, 4, num_blocks)[:, None]
        blocks[num_blocks // 2] = 0
    return weight.to(dtype)


@pytest.mark.parametrize("blocksize", BLOCKSIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_and_scales_are_those_of_the_reference(blocksize, dtype):
    for number, quant_type in enumerate(QUANT_TYPES):
        for num_weights in (1, blocksize - 1, 2 * blocksize, 5 * blocksize + 7 + number):
            weight = weights(num_weights, dtype, blocksize, seed=number)
            found = launch.quantize_4bit(weight, blocksize, quant_type, False)
            expected = reference.quantize_4bit(weight, blocksize, quant_type, False)
            for one, other in zip(found, expected, strict=True):
                same_bits(one, other)


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_ties_and_their_neighbors_are_those_of_the_reference(quant_type):
    from ince.ops.triton.tables import ranks_on

    midpoints, _, values = ranks_on(quant_type, torch.device("cpu"))
    points = torch.cat([midpoints, values])
    up, down = (torch.nextafter(points, torch.tensor(end)) for end in (2.0, -2.0))
    weight = torch.cat([points, up, down]).clamp(-1, 1)
    weight = torch.cat([weight, torch.ones(-weight.numel() % 128)])
    for block in weight.split(32):
        block[0] = 1.0
    for scale in (1.0, 0.3, 1e-20):
        found = launch.quantize_4bit(weight * scale, 32, quant_type, False)
        expected = reference.quantize_4bit(weight * scale, 32, quant_type, False)
        for one, other in zip(found, expected, strict=True):
            same_bits(one, other)


@pytest.mark.parametrize(
    "quant_type, blocksize",
    [("nf4", 32), ("nf4", 64), ("nf4", 4096), ("fp4", 128), ("fp4", 256), ("int4", 64)],
)
def test_searched_scales_are_those_of_the_reference(quant_type, blocksize):
    weight = weights(3 * blocksize + 11, torch.float32, blocksize)
    found = launch.quantize_4bit(weight, blocksize, quant_type, True)
    expected = reference.quantize_4bit(weight, blocksize, quant_type, True)
    for one, other in zip(found, expected, strict=True):
        same_bits(one, other)


@pytest.mark.parametrize("blocksize", BLOCKSIZES)
@pytest.mark.parametrize("is_nested", [False, True])
def test_expanded_weights_are_those_of_the_reference(blocksize, is_nested):
    # Less than a tile, several whole ones, several and an odd rest.
    for number, shape in enumerate(((3,), (2, 4096), (7, 1163))):
        weight = weights(torch.Size(shape).numel(), torch.float32, blocksize, seed=number)
        quant_type = QUANT_TYPES[number]
        packed, absmax = reference.quantize_4bit(weight, blocksize, quant_type, False)
        parts = (absmax, None, None)
        if is_nested:
            parts = reference.quantize_absmax(absmax)
        for dtype in DTYPES:
            rest = (blocksize, shape, dtype, quant_type)
            same_bits(
                launch.dequantize_4bit(packed, *parts, *rest),
                reference.dequantize_4bit(packed, *parts, *rest),
            )


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_every_byte_means_what_it_does_in_the_reference(quant_type):
    packed = torch.arange(256, dtype=torch.uint8)[:, None]
    absmax = torch.randn(8, generator=torch.Generator().manual_seed(1)).abs()
    rest = (None, None, 64, (512,), torch.bfloat16, quant_type)
    same_bits(
        launch.dequantize_4bit(packed, absmax, *rest),
        reference.dequantize_4bit(packed, absmax, *rest),
    )


def test_packed_bytes_may_begin_between_two_words():
    weight = weights(4096)
    packed, absmax = reference.quantize_4bit(weight, 64, "nf4", False)
    odd = torch.cat([packed.new_zeros(1, 1), packed])[1:]
    assert odd.data_ptr() % 4
    rest = (absmax, None, None, 64, (4096,), torch.bfloat16, "nf4")
    same_bits(launch.dequantize_4bit(odd, *rest), reference.dequantize_4bit(packed, *rest))


@pytest.mark.parametrize("num_scales", [1, 255, 256, 700])
def test_scales_in_8_bits_are_those_of_the_reference(num_scales):
    generator = torch.Generator().manual_seed(num_scales)
    absmax = torch.randn(num_scales, generator=generator).abs()
    found = launch.quantize_absmax(absmax)
    expected = reference.quantize_absmax(absmax)
    for one, other in zip(found, expected, strict=True):
        same_bits(one, other)
    same_bits(launch.dequantize_absmax(*found), reference.dequantize_absmax(*expected))


def test_equal_scales_in_8_bits_are_those_of_the_reference():
    absmax = torch.full((300,), 0.25)
    for one, other in zip(
        launch.quantize_absmax(absmax), reference.quantize_absmax(absmax), strict=True
    ):
        same_bits(one, other)


def test_tensors_that_are_views_are_read_as_they_lie():
    weight = weights(128 * 6).view(128, 6).T[1:5]
    for one, other in zip(
        launch.quantize_4bit(weight, 64, "nf4", False),
        reference.quantize_4bit(weight, 64, "nf4", False),
        strict=True,
    ):
        same_bits(one, other)


# numpy, which the interpreter computes with, warns of infinity times zero.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 70, 199])
def test_weights_that_are_not_finite_are_refused(bad, at):
    weight = weights(200)
    weight[at] = bad
    with pytest.raises(QuantError, match="1 of 200 weights are not finite"):
        launch.quantize_4bit(weight, 64, "nf4", False)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_scales_that_are_not_finite_are_refused():
    with pytest.raises(QuantError, match="block scales are not finite"):
        launch.quantize_absmax(torch.tensor([1.0, float("inf")]))


def test_the_proof_holds_here_and_fails_where_a_kernel_errs(monkeypatch):
    here = torch.device("cpu")
    assert proof.difference(here) is None
    right = launch.dequantize_4bit

    def one_bit_off(*args):
        found = right(*args)
        found.view(torch.uint8)[0] ^= 1
        return found

    monkeypatch.setattr(proof, "dequantize_4bit", one_bit_off)
    assert "other weights" in proof.difference(here)
