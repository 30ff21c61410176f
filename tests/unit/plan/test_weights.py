"""What is held all the time, to the byte: by known figures, and by the layers themselves."""

import pytest
import torch

from ince.plan import KNOWN_SHAPES, Setup
from ince.plan.weights import held_moments, moment_bytes, packed_bytes, weight_parts
from ince.quant import Linear4bit, NF4Config

LLAMA_8B, LLAMA_70B = KNOWN_SHAPES["Llama-3-8B"], KNOWN_SHAPES["Llama-3-70B"]
FIGURES = {
    "Llama-3-8B": (3_489_660_928, 3_600_416_768, 5_702_295_552, 6_027_747_328),
    "Llama-3-70B": (34_225_520_640, 35_311_779_840, 39_517_110_272, 42_709_041_152),
}


@pytest.mark.parametrize("name", FIGURES)
def test_llama_3_in_four_bits(name):
    shape = KNOWN_SHAPES[name]
    codes, with_scales, whole, without_double = FIGURES[name]
    # The figures leave out four bytes that each double-quantized layer has besides.
    offsets = 4 * len(shape.matrices) * shape.num_layers
    parts = weight_parts(shape, Setup())
    assert parts["codes"] == codes
    assert parts["codes"] + parts["scales"] == with_scales + offsets
    assert sum(parts.values()) == whole + offsets
    assert sum(weight_parts(shape, Setup(double_quant=False)).values()) == without_double


@pytest.mark.parametrize(
    ("shape", "r", "count", "moments"),
    [
        (LLAMA_8B, 16, 41_943_040, 0.336),
        (LLAMA_8B, 64, 167_772_160, 1.342),
        (LLAMA_70B, 16, 207_093_760, 1.657),
        (LLAMA_70B, 64, 828_375_040, 6.627),
    ],
)
def test_adapters_and_their_moments(shape, r, count, moments):
    setup = Setup(r=r)
    assert setup.num_trainable(shape) == count
    assert moment_bytes(shape, setup) == 8 * count
    assert round(moment_bytes(shape, setup) / 1e9, 3) == moments


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize(
    ("rows", "columns", "blocksize"), [(7, 9, 64), (33, 70, 32), (64, 512, 64)]
)
def test_four_bits_are_counted_as_they_are_stored(rows, columns, blocksize, double_quant):
    config = NF4Config(blocksize=blocksize, double_quant=double_quant)
    layer = Linear4bit.from_weight(torch.ones(rows, columns), config=config)
    counted = packed_bytes(rows * columns, blocksize, double_quant=double_quant)
    assert counted.total == layer.weight_bytes


def test_moments_in_8_bits_take_two_bytes_and_scales():
    setup = Setup(r=16, optimizer="adamw_8bit")
    share = moment_bytes(LLAMA_8B, setup) / setup.num_trainable(LLAMA_8B)
    assert share == pytest.approx(2 + 8 / 256, rel=1e-3)


def test_double_quantization_saves_what_the_paper_says():
    shape = KNOWN_SHAPES["Llama-65B"]
    single, double = (
        sum(weight_parts(shape, Setup(double_quant=on)).values()) for on in (False, True)
    )
    assert round(8 * (single - double) / shape.counts.linear, 3) == 0.373
    assert round((single - double) / 1e9, 2) == 3.02


@pytest.mark.parametrize(("optimizer", "share"), [("lion", 4), ("lion_8bit", 1 + 4 / 256)])
def test_lion_has_one_moment(optimizer, share):
    setup = Setup(r=16, optimizer=optimizer)
    found = moment_bytes(LLAMA_8B, setup) / setup.num_trainable(LLAMA_8B)
    assert found == pytest.approx(share, rel=1e-3)


def test_pages_hold_their_budget_and_at_least_what_is_on_its_way():
    setup = Setup(r=16, optimizer="paged_adamw")
    moments = moment_bytes(LLAMA_8B, setup)
    assert held_moments(LLAMA_8B, setup) == (3 * 4 * 2**20, moments)
    budget = 100 * 2**20
    here, below = held_moments(LLAMA_8B, setup.with_changes(device_moment_bytes=budget))
    assert here == budget
    assert below == moments - (budget - 3 * 4 * 2**20)
    assert held_moments(LLAMA_8B, setup.with_changes(device_moment_bytes=None)) == (moments, 0)
    # Between memory and a file a page has its parameters' old values with it.
    on_cpu = setup.with_changes(on_cpu=True)
    assert held_moments(LLAMA_8B, on_cpu)[0] == 4 * 4 * 2**20 * 3 // 2


def test_full_fine_tuning_has_originals_where_weights_are_in_16_bits():
    full = Setup(method="full")
    assert weight_parts(LLAMA_8B, full)["master"] == 4 * LLAMA_8B.counts.total
    assert "master" not in weight_parts(LLAMA_8B, full.with_changes(value_bytes=4))
    assert "master" not in weight_parts(LLAMA_8B, Setup(method="lora"))
