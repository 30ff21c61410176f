"""ince's bytes against those of bitsandbytes, which is the definition of the stored format."""

import logging

import pytest
import torch
from torch import nn

from ince.ops import (
    BLOCKSIZES,
    dequantize_absmax,
    dequantize_nf4,
    dynamic_map,
    quantize_absmax,
    quantize_nf4,
)
from ince.quant import Linear4bit, NF4Config

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [
    (1,),
    (2,),
    (63,),
    (64,),
    (65,),
    (1, 1),
    (3, 7),
    (5, 33),
    (31, 31),
    (64, 64),
    (48, 96),
    (33, 129),
    (300, 65),
    (640, 640),
    (1537, 701),
]


@pytest.fixture(scope="module")
def oracle():
    logging.disable(logging.WARNING)  # it speaks of kernels that are not installed
    try:
        from bitsandbytes import functional
    finally:
        logging.disable(logging.NOTSET)
    return functional


def make_weight(shape, dtype, seed=0):
    """Normal weights of any magnitude, with zeros, whole zero blocks and an outlier."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    weight = torch.randn(shape, generator=generator)
    weight *= 10 ** float(torch.randn((), generator=generator))
    flat = weight.view(-1)
    flat[::17] = 0
    if flat.numel() > 400:
        flat[128:256] = 0
        flat[300] *= 50
    return weight.to(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_and_scales_are_the_same_bytes(oracle, dtype, shape):
    weight = make_weight(shape, dtype)
    for blocksize in BLOCKSIZES:
        their_packed, state = oracle.quantize_4bit(weight, blocksize=blocksize, quant_type="nf4")
        packed, absmax = quantize_nf4(weight, blocksize)
        assert torch.equal(packed, their_packed), blocksize
        assert torch.equal(absmax, state.absmax), blocksize


@pytest.mark.parametrize("num_zeros", [1, 64, 100, 6400])
@pytest.mark.parametrize("dtype", FLOATS)
def test_zeros_are_the_same_bytes(oracle, dtype, num_zeros):
    weight = torch.zeros(num_zeros, dtype=dtype)
    their_packed, state = oracle.quantize_4bit(weight, quant_type="nf4")
    packed, absmax = quantize_nf4(weight)
    assert torch.equal(packed, their_packed)
    assert torch.equal(absmax, state.absmax)


@pytest.mark.parametrize("magnitude", [1e-44, 1e-39, 1e-37, 1e-20, 1e20, 3e38])
def test_magnitudes_at_the_ends_of_float32_are_the_same_bytes(oracle, magnitude):
    weight = torch.rand(5, 70, generator=torch.Generator().manual_seed(0)) * 2 - 1
    weight = weight * magnitude
    their_packed, state = oracle.quantize_4bit(weight, quant_type="nf4")
    packed, absmax = quantize_nf4(weight)
    assert torch.equal(packed, their_packed)
    assert torch.equal(absmax, state.absmax)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("blocksize", [32, 64, 1024])
@pytest.mark.parametrize("shape", SHAPES)
def test_nested_scales_are_the_same_bytes(oracle, dtype, blocksize, shape):
    weight = make_weight(shape, dtype)
    _, state = oracle.quantize_4bit(
        weight, blocksize=blocksize, quant_type="nf4", compress_statistics=True
    )
    codes, nested_absmax, offset = quantize_absmax(quantize_nf4(weight, blocksize)[1])
    assert torch.equal(codes, state.absmax)
    assert torch.equal(nested_absmax, state.state2.absmax)
    assert torch.equal(offset, state.offset)
    theirs = oracle.dequantize_blockwise(state.absmax, state.state2) + state.offset
    assert torch.equal(dequantize_absmax(codes, nested_absmax, offset), theirs)


def test_the_dynamic_map_is_the_same(oracle):
    assert torch.equal(dynamic_map(), oracle.create_dynamic_map(signed=True))


def test_every_step_of_the_grid_has_the_same_code(oracle):
    # 1 first in every block keeps its scale at 1, so that values arrive as they are.
    values = torch.linspace(-1, 1, 256 * 1200).view(-1, 256).clone()
    values[:, 0] = 1
    values = values.flatten()
    # Their mean must be exactly zero to go through the operator unchanged.
    values = torch.stack([values.view(-1, 256), -values.view(-1, 256)], dim=1).flatten()
    offset = values.mean()
    theirs, state = oracle.quantize_blockwise(values - offset, blocksize=256)
    codes, nested_absmax, own_offset = quantize_absmax(values)
    assert torch.equal(own_offset, offset)
    assert torch.equal(codes, theirs)
    assert torch.equal(nested_absmax, state.absmax)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("blocksize", [32, 64, 128, 256])
@pytest.mark.parametrize("nested", [True, False])
# Its AVX-512 path is right only where rows are whole blocks; there it is the oracle.
@pytest.mark.parametrize("shape", [(64, 256), (1, 1024), (17, 512), (256, 2048)])
def test_floats_are_the_same_bits(oracle, dtype, blocksize, nested, shape):
    weight = make_weight(shape, dtype)
    their_packed, state = oracle.quantize_4bit(
        weight, blocksize=blocksize, quant_type="nf4", compress_statistics=nested
    )
    packed, absmax = quantize_nf4(weight, blocksize)
    if nested:
        absmax = dequantize_absmax(*quantize_absmax(absmax))
    theirs = oracle.dequantize_4bit(their_packed, state)
    assert torch.equal(dequantize_nf4(packed, absmax, blocksize, shape, dtype), theirs)


# Where rows are odd it falls back to plain PyTorch, which is right for any shape.
@pytest.mark.parametrize("shape", [(5, 33), (31, 31), (300, 65)])
def test_floats_of_odd_rows_are_the_same_bits(oracle, shape):
    weight = make_weight(shape, torch.bfloat16)
    their_packed, state = oracle.quantize_4bit(weight, quant_type="nf4")
    packed, absmax = quantize_nf4(weight)
    with torch.compiler.set_stance("force_eager"):
        theirs = oracle.dequantize_4bit(their_packed, state)
    assert torch.equal(dequantize_nf4(packed, absmax, 64, shape, torch.bfloat16), theirs)


@pytest.mark.parametrize(("in_features", "out_features"), [(64, 48), (576, 192), (100, 7)])
@pytest.mark.parametrize("nested", [True, False])
def test_a_layer_holds_the_same_bytes(oracle, in_features, out_features, nested):
    torch.manual_seed(0)
    linear = nn.Linear(in_features, out_features).bfloat16()
    layer = Linear4bit.from_linear(linear, NF4Config(double_quant=nested))
    packed, state = oracle.quantize_4bit(
        linear.weight.detach(), quant_type="nf4", compress_statistics=nested
    )
    assert torch.equal(layer.packed, packed)
    assert torch.equal(layer.absmax, state.absmax)
    if nested:
        assert torch.equal(layer.nested_absmax, state.state2.absmax)
        assert torch.equal(layer.nested_offset, state.offset)


def test_our_error_is_right_where_theirs_is_not():
    # Rows of 96 are no whole blocks: bitsandbytes' AVX-512 path reads the wrong scales there.
    weight = torch.randn(128, 96, generator=torch.Generator().manual_seed(0))
    packed, absmax = quantize_nf4(weight)
    error = (dequantize_nf4(packed, absmax, 64, weight.shape) - weight).abs().mean()
    assert float(error) < 0.0760
