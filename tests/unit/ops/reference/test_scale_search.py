"""That the search follows its rule, and finds what a far longer one finds."""

import numpy as np
import pytest
import torch

from ince.ops import BLOCKSIZES, QUANT_TYPES, code_of, reference
from ince.ops.reference.nearest import nearest_value
from ince.ops.reference.scale_search import factors, search_scales, sum_by_halves


def draw(kind, size, seed=0):
    """Weights of variance 1."""
    if kind == "normal":
        return torch.randn(size, generator=torch.Generator().manual_seed(seed))
    values = np.random.default_rng(seed).standard_t(5, size=size) / np.sqrt(5 / 3)
    return torch.from_numpy(values).float()


def mean_square(weight, blocksize, quant_type, scale_search):
    packed, absmax = reference.quantize_4bit(weight, blocksize, quant_type, scale_search)
    restored = reference.dequantize_4bit(
        packed, absmax, None, None, blocksize, weight.shape, torch.float32, quant_type
    )
    return float((restored - weight).square().mean())


def best_scale(block, quant_type):
    """The rule as it is written, with numpy's scalars, one operation at a time."""
    one = np.float32
    values = np.unique(code_of(quant_type).numpy())
    midpoints = (values[:-1] + values[1:]) / one(2)
    largest = np.abs(block).max()
    if not 2.0**-100 <= largest <= 2.0**100:
        return largest
    scaled = np.clip(block * (one(1) / largest), one(-1), one(1))

    def by_halves(numbers):
        numbers = list(numbers)
        while len(numbers) > 1:
            half = len(numbers) // 2
            numbers = [numbers[i] + numbers[i + half] for i in range(half)]
        return numbers[0]

    best = best_gain = None
    for factor in factors(len(block)):
        chosen = [values[sum(m < u * one(factor) for m in midpoints)] for u in scaled]
        product = by_halves([u * c for u, c in zip(scaled, chosen, strict=True)])
        square = by_halves([c * c for c in chosen])
        scale = product / square
        if best_gain is None or product * scale > best_gain:
            best, best_gain = scale, product * scale
    return largest * best


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize("blocksize", [32, 256])
def test_the_written_rule_is_what_is_computed(blocksize, quant_type):
    weight = draw("normal", 4 * blocksize) * torch.tensor([1e-20, 1, 0, 1e31]).repeat_interleave(
        blocksize
    )
    _, absmax = reference.quantize_4bit(weight, blocksize, quant_type, True)
    expected = [best_scale(block.numpy(), quant_type) for block in weight.split(blocksize)]
    assert absmax.tolist() == [float(scale) for scale in expected]


def test_sums_go_by_halves():
    # In this order alone the small numbers meet before they meet the large ones.
    values = torch.tensor([[2.0**24, 1.0, -(2.0**24), 1.0]])
    assert sum_by_halves(values).tolist() == [2.0]
    assert sum_by_halves(torch.tensor([[2.0**24, -(2.0**24), 1.0, 1.0]])).tolist() == [1.0]
    assert sum_by_halves(torch.tensor([[3.0], [4.0]])).tolist() == [3.0, 4.0]


@pytest.mark.parametrize("blocksize", BLOCKSIZES)
def test_factors_are_few_exact_and_begin_with_one(blocksize):
    found = factors(blocksize)
    assert found[0] == 1
    assert len(found) == len(set(found)) <= 16
    assert all(np.float32(factor) == factor for factor in found)


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize("kind", ["normal", "t5"])
@pytest.mark.parametrize("blocksize", [32, 128, 256, 4096])
def test_few_candidates_come_near_to_many(blocksize, kind, quant_type):
    weight = draw(kind, 1 << 15)
    found = mean_square(weight, blocksize, quant_type, True)
    blocks = weight.view(-1, blocksize)
    absmax = blocks.abs().amax(1)
    least = torch.full_like(absmax, torch.inf)
    for part in torch.linspace(0.35, 1.15, 81):
        scale = (absmax * part)[:, None]
        error = (nearest_value(blocks / scale, quant_type) * scale - blocks).square().sum(1)
        least = torch.minimum(least, error)
    assert found <= 1.01 * float(least.sum()) / weight.numel()


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_blocks_that_are_exact_keep_their_scale(quant_type):
    values = code_of(quant_type)
    weight = torch.cat([values.repeat(4) * 3.5, values.repeat(4) / 7])
    _, plain = reference.quantize_4bit(weight, 64, quant_type, False)
    _, searched = reference.quantize_4bit(weight, 64, quant_type, True)
    assert torch.allclose(searched, plain, rtol=1e-6)


@pytest.mark.parametrize("magnitude", [0.0, 1e-44, 1e-39, 1e-31, 2e30, 3e38])
def test_scales_at_the_ends_of_float32_stay(magnitude):
    weight = (torch.rand(3, 70, generator=torch.Generator().manual_seed(0)) * 2 - 1) * magnitude
    for a, b in zip(
        reference.quantize_4bit(weight, 64, "nf4", True),
        reference.quantize_4bit(weight, 64, "nf4", False),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_a_short_block_is_searched_as_if_filled_with_zeros():
    weight = draw("normal", 37)
    _, short = reference.quantize_4bit(weight, 64, "nf4", True)
    filled = torch.cat([weight, torch.zeros(27)])
    _, full = reference.quantize_4bit(filled, 64, "nf4", True)
    assert torch.allclose(short, full, rtol=1e-6)
    assert not torch.equal(short, weight.abs().amax()[None])


def test_no_scale_is_changed_outside_the_range():
    absmax = torch.tensor([0.0, 1.0])
    search_scales(torch.cat([torch.zeros(64), draw("normal", 64).clamp(-1, 1)]), absmax, 64, "nf4")
    assert absmax[0] == 0
    assert 0 < absmax[1] < 1.2
