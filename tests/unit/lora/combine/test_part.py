"""What is no pair of factors is named where it enters."""

import math

import pytest
import torch

from ince.errors import AdapterError
from ince.lora.combine.part import Part, check_factors, checked_parts


def pair(r=2, d=5, o=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(r * 100 + d * 10 + o)
    return (
        torch.randn(r, d, generator=generator).to(dtype),
        torch.randn(o, r, generator=generator).to(dtype),
    )


def test_delta_is_the_scaled_product_without_the_weight():
    a, b = pair()
    torch.testing.assert_close(Part(a, b, -0.5, weight=3.0).delta(), -0.5 * b @ a)
    assert Part(a, b, 1.0).rank == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_parts_become_float32_and_leave_autograd(dtype):
    a, b = (factor.requires_grad_() for factor in pair(dtype=dtype))
    (part,) = checked_parts([Part(a, b, 2.0, -1.0, "x")])
    assert part.a_RD.dtype == part.b_OR.dtype == torch.float32
    assert not part.a_RD.requires_grad
    assert (part.s, part.weight, part.name) == (2.0, -1.0, "x")
    assert torch.equal(part.a_RD, a.detach().float())


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        (torch.ones(2, 5, 1), torch.ones(4, 2), "not matrices"),
        (torch.ones(5), torch.ones(4), "not matrices"),
        (torch.ones(2, 5), torch.ones(4, 3), "disagree about its rank"),
        (torch.ones(2, 5), torch.ones(2, 4), "disagree about its rank"),
        (torch.ones(0, 5), torch.ones(4, 0), "empty"),
        (torch.ones(2, 0), torch.ones(4, 2), "empty"),
        (torch.ones(2, 5), torch.ones(0, 2), "empty"),
        (torch.ones(2, 5, dtype=torch.int8), torch.ones(4, 2), "factor A does not hold floats"),
        (torch.ones(2, 5), torch.full((4, 2), math.nan), "factor B holds NaN"),
        (torch.full((2, 5), -math.inf), torch.ones(4, 2), "factor A holds NaN or infinity"),
        (torch.ones(2, 5), torch.ones(4, 2, device="meta"), "two devices"),
    ],
)
def test_no_pair_of_factors(a, b, text):
    with pytest.raises(AdapterError, match=text) as caught:
        check_factors(a, b, where="layers.0")
    assert caught.value.where == "layers.0"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_scales_and_weights_are_finite(number):
    with pytest.raises(AdapterError, match="scale"):
        checked_parts([Part(*pair(), number)])
    with pytest.raises(AdapterError, match="weight of an adapter"):
        checked_parts([Part(*pair(), 1.0, number)])


def test_parts_belong_to_one_matrix():
    with pytest.raises(AdapterError, match="different shapes") as caught:
        checked_parts([Part(*pair(), 1.0), Part(*pair(d=6), 1.0, name="odd")])
    assert caught.value.where == "odd"
    with pytest.raises(AdapterError, match="nothing to combine"):
        checked_parts([])
