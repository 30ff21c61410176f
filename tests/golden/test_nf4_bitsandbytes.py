"""ince's bytes against those of bitsandbytes, which is the definition of the stored format.

Each comparison runs on the fastest backend of this machine's CPU and on the reference.
"""

import logging
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from ince.formats.bitsandbytes import to_bitsandbytes
from ince.ops import (
    BLOCKSIZES,
    code_of,
    dequantize_4bit,
    dequantize_absmax,
    dynamic_map,
    quantize_4bit,
    quantize_absmax,
)
from ince.ops.backends import reference_only
from ince.quant import Linear4bit, NF4Config

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
FORMATS = ["nf4", "fp4"]
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
    (513, 301),
]

# Of a 1024 x 1024 round trip on N(0, 1): the limits that bitsandbytes' own tests set, of the mean
# absolute error and of the mean relative one.
LIMITS = {
    32: (0.068229, 0.191854),
    64: (0.073316, 0.205719),
    128: (0.077468, 0.217974),
    256: (0.081051, 0.228891),
    512: (0.084548, 0.239887),
    1024: (0.087919, 0.249570),
    2048: (0.091349, 0.259392),
    4096: (0.095067, 0.269466),
}


@pytest.fixture(scope="module")
def oracle():
    logging.disable(logging.WARNING)  # it speaks of kernels that are not installed
    try:
        from bitsandbytes import functional
    finally:
        logging.disable(logging.NOTSET)
    return functional


@pytest.fixture(params=["fastest", "reference"], autouse=True)
def _backend(request):
    with reference_only() if request.param == "reference" else nullcontext():
        yield


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


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


def at_midpoints(quant_type, steps):
    """Blocks of scale 1 whose weights are the midpoints, or so many floats above them."""
    values = code_of(quant_type).unique()
    weight = (values[:-1] + values[1:]) / 2
    for _ in range(abs(steps)):
        weight = torch.nextafter(weight, torch.full_like(weight, float(steps)))
    return torch.cat([weight, torch.ones(64 - len(weight)), -weight, torch.ones(64 - len(weight))])


def hard_weights(quant_type):
    """What is likely to go wrong, by name; every one in float32."""
    outlier = random(300)
    outlier[150] = 1e30
    signs = torch.tensor([1.0, -1.0]).repeat(70)
    negative_zeros = random(200)
    negative_zeros[::3] = -0.0
    mixed = random(1000)
    mixed[64:192] = 0
    mixed[960:] = 0
    small = random(5, 70)
    return {
        "all equal": torch.full((130,), 0.3),
        "all equal and negative": torch.full((130,), -7.25),
        "of one magnitude": signs * 0.01,
        "one outlier": outlier,
        "one weight": torch.tensor([-3.0]),
        "negative zero alone": torch.tensor([-0.0]),
        "negative zeros": negative_zeros,
        "only negative zeros": torch.full((130,), -0.0),
        "zero blocks between others": mixed,
        "zero but for the last": torch.cat([torch.zeros(128), torch.ones(1)]),
        "subnormal": small * 1e-40,
        "the smallest there is": torch.full((70,), 1e-45),
        "around the least scale": small * 1e-38,
        "huge": (small / 10) * 1e38,
        "the largest there is": torch.full((70,), 3.4028234e38) * signs[:70],
        "at midpoints": at_midpoints(quant_type, 0),
        "just above midpoints": at_midpoints(quant_type, 1),
        "just below midpoints": at_midpoints(quant_type, -1),
        "scaled midpoints": at_midpoints(quant_type, 0) * 0.37,
        "an odd number": random(4095),
        "fewer than a block": random(17),
        "ascending": torch.linspace(-1, 1, 4096),
    }


def check_packing(oracle, weight, blocksize, quant_type):
    theirs, state = oracle.quantize_4bit(weight, blocksize=blocksize, quant_type=quant_type)
    packed, absmax = quantize_4bit(weight, blocksize, quant_type)
    assert torch.equal(packed, theirs)
    assert torch.equal(absmax, state.absmax)


@pytest.mark.parametrize("quant_type", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_and_scales_are_the_same_bytes(oracle, dtype, shape, quant_type):
    weight = make_weight(shape, dtype)
    for blocksize in BLOCKSIZES:
        check_packing(oracle, weight, blocksize, quant_type)


@pytest.mark.parametrize("quant_type", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", sorted(hard_weights("nf4")))
def test_hard_weights_are_the_same_bytes(oracle, name, dtype, quant_type):
    weight = hard_weights(quant_type)[name]
    # What float16 cannot hold would be infinite in it.
    weight = weight.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
    for blocksize in (32, 64, 256, 4096):
        check_packing(oracle, weight, blocksize, quant_type)


@pytest.mark.parametrize("quant_type", FORMATS)
@pytest.mark.parametrize("num_zeros", [1, 64, 100, 6400])
@pytest.mark.parametrize("dtype", FLOATS)
def test_zeros_are_the_same_bytes(oracle, dtype, num_zeros, quant_type):
    check_packing(oracle, torch.zeros(num_zeros, dtype=dtype), 64, quant_type)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("blocksize", [32, 64, 1024])
@pytest.mark.parametrize("shape", SHAPES)
def test_nested_scales_are_the_same_bytes(oracle, dtype, blocksize, shape):
    weight = make_weight(shape, dtype)
    _, state = oracle.quantize_4bit(
        weight, blocksize=blocksize, quant_type="nf4", compress_statistics=True
    )
    codes, nested_absmax, offset = quantize_absmax(quantize_4bit(weight, blocksize)[1])
    assert torch.equal(codes, state.absmax)
    assert torch.equal(nested_absmax, state.state2.absmax)
    assert torch.equal(offset, state.offset)
    theirs = oracle.dequantize_blockwise(state.absmax, state.state2) + state.offset
    assert torch.equal(dequantize_absmax(codes, nested_absmax, offset), theirs)


@pytest.mark.parametrize(
    "scales",
    {
        "one": torch.tensor([0.7]),
        "equal": torch.full((600,), 0.1),
        "one far off": torch.cat([torch.rand(300), torch.tensor([1e4])]),
        "zeros among them": torch.rand(700).mul(2).sub(1).relu(),
        "a whole block": torch.rand(256),
        "one above a block": torch.rand(257),
        "small": torch.rand(500) * 1e-30,
        "subnormal": torch.rand(500) * 1e-40,
        "large": torch.rand(500) * 1e35,
    }.values(),
)
def test_hard_scales_are_the_same_bytes(oracle, scales):
    offset = scales.mean()
    theirs, state = oracle.quantize_blockwise(scales - offset, blocksize=256)
    codes, nested_absmax, own_offset = quantize_absmax(scales)
    assert torch.equal(own_offset, offset)
    assert torch.equal(nested_absmax, state.absmax)
    assert torch.equal(codes, theirs)


def test_the_maps_are_the_same(oracle):
    assert torch.equal(dynamic_map(), oracle.create_dynamic_map(signed=True))
    for quant_type in FORMATS:
        theirs = oracle.get_4bit_type(quant_type, device="cpu")
        assert torch.equal(code_of(quant_type), theirs)


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


@pytest.mark.parametrize("quant_type", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("blocksize", [32, 64, 128, 256])
@pytest.mark.parametrize("nested", [True, False])
# Its AVX-512 path is right only where rows are whole blocks; there it is the oracle.
@pytest.mark.parametrize("shape", [(64, 256), (1, 1024), (17, 512)])
def test_floats_are_the_same_bits(oracle, dtype, blocksize, nested, shape, quant_type):
    weight = make_weight(shape, dtype)
    their_packed, state = oracle.quantize_4bit(
        weight, blocksize=blocksize, quant_type=quant_type, compress_statistics=nested
    )
    packed, absmax = quantize_4bit(weight, blocksize, quant_type)
    names = {}
    if nested:
        absmax, names["nested_absmax"], names["nested_offset"] = quantize_absmax(absmax)
    theirs = oracle.dequantize_4bit(their_packed, state)
    ours = dequantize_4bit(packed, absmax, blocksize, shape, dtype, quant_type, **names)
    assert torch.equal(ours, theirs)


# Where rows are odd it falls back to plain PyTorch, which is right for any shape.
@pytest.mark.parametrize("quant_type", FORMATS)
@pytest.mark.parametrize("shape", [(5, 33), (31, 31), (300, 65)])
def test_floats_of_odd_rows_are_the_same_bits(oracle, shape, quant_type):
    weight = make_weight(shape, torch.bfloat16)
    their_packed, state = oracle.quantize_4bit(weight, quant_type=quant_type)
    packed, absmax = quantize_4bit(weight, 64, quant_type)
    with torch.compiler.set_stance("force_eager"):
        theirs = oracle.dequantize_4bit(their_packed, state)
    ours = dequantize_4bit(packed, absmax, 64, shape, torch.bfloat16, quant_type)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("in_features", "out_features"), [(64, 48), (576, 192), (100, 7)])
@pytest.mark.parametrize("nested", [True, False])
def test_a_layer_holds_the_same_bytes(oracle, in_features, out_features, nested):
    torch.manual_seed(0)
    linear = nn.Linear(in_features, out_features).bfloat16()
    layer = Linear4bit.from_linear(linear, NF4Config(double_quant=nested, scale_search=False))
    packed, state = oracle.quantize_4bit(
        linear.weight.detach(), quant_type="nf4", compress_statistics=nested
    )
    assert torch.equal(layer.packed, packed)
    assert torch.equal(layer.absmax, state.absmax)
    if nested:
        assert torch.equal(layer.nested_absmax, state.state2.absmax)
        assert torch.equal(layer.nested_offset, state.offset)


@pytest.mark.parametrize("blocksize", BLOCKSIZES)
@pytest.mark.parametrize("scale_search", [False, True])
def test_errors_stay_below_the_published_limits(blocksize, scale_search):
    weight = random(1024, 1024)
    parts = quantize_4bit(weight, blocksize, scale_search=scale_search)
    error = (dequantize_4bit(*parts, blocksize, weight.shape) - weight).abs()
    absolute, relative = LIMITS[blocksize]
    assert float(error.mean()) < absolute
    assert float((error / (weight.abs() + 1e-8)).mean()) < relative


@pytest.mark.parametrize("in_features", [32, 96, 160, 7])
@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_that_are_no_whole_blocks_are_right_here(in_features, dtype):
    # bitsandbytes' AVX-512 path reads the wrong scales there: an error of 0.28 to 0.40.
    weight = random(128, in_features)
    packed, absmax = quantize_4bit(weight)
    restored = dequantize_4bit(packed, absmax, 64, weight.shape, dtype)
    codes = torch.stack([packed[:, 0] >> 4, packed[:, 0] & 15], dim=1).flatten().long()
    by_hand = code_of("nf4")[codes] * absmax.repeat_interleave(64)[: weight.numel()]
    assert torch.equal(restored, by_hand.view(weight.shape).to(dtype))
    assert float((restored.float() - weight).abs().mean()) < 0.080


@pytest.mark.parametrize("quant_type", FORMATS)
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("blocksize", [64, 128])
def test_searched_scales_are_read_by_bitsandbytes(oracle, quant_type, nested, blocksize):
    torch.manual_seed(0)
    linear = nn.Linear(256, 192, bias=False).bfloat16()
    config = NF4Config(
        quant_type=quant_type, double_quant=nested, blocksize=blocksize, scale_search=True
    )
    layer = Linear4bit.from_linear(linear, config)
    plain = quantize_4bit(linear.weight, blocksize, quant_type)[0]
    assert not torch.equal(layer.packed, plain)
    stored = to_bitsandbytes("layer", layer)
    packed = stored.pop("layer.weight")
    state = oracle.QuantState.from_dict(stored, device=torch.device("cpu"))
    theirs = oracle.dequantize_4bit(packed, state)
    assert theirs.dtype == torch.bfloat16
    assert torch.equal(theirs, layer.dequantize(torch.bfloat16))
