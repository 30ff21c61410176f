"""The operators of optimizer steps: what they refuse, and how 8 bits, 16 and 32 agree."""

import pytest
import torch

from ince.errors import InputError
from ince.ops import (
    adamw_8bit_step_,
    adamw_step_,
    dequantize_8bit,
    lion_8bit_step_,
    lion_step_,
    quantize_8bit,
)

OPS = torch.ops.ince
ADAMW = {"step": 3, "lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}
LION = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1}


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def arguments(shape=(3, 300), dtype=torch.float32):
    """Of each operator: its tensors."""
    first, second = draw(*shape, seed=2), draw(*shape, seed=3).square()
    (c1, a1), (c2, a2) = quantize_8bit(first), quantize_8bit(second, signed=False)
    both = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1)
    return {
        adamw_step_: (*both, first, second),
        adamw_8bit_step_: (*both, c1, c2, a1, a2),
        lion_step_: (*both, first),
        lion_8bit_step_: (*both, c1, a1),
    }


STEPS = tuple(arguments())


def numbers(step):
    return ADAMW if "adamw" in step.__name__ else LION


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_operators_keep_the_rules_of_torch_library(step, dtype):
    for shape in ((), (0,), (2, 300)):
        args = (*(each.clone() for each in arguments(shape, dtype)[step]), *numbers(step).values())
        operator = getattr(OPS, step.__name__).default
        torch.library.opcheck(operator, args, test_utils=("test_schema", "test_faketensor"))


def test_a_step_in_8_bits_is_one_in_32_between_expanding_and_coding():
    p, g, c1, c2, a1, a2 = (each.clone() for each in arguments()[adamw_8bit_step_])
    first, second = dequantize_8bit(c1, a1), dequantize_8bit(c2, a2, signed=False)
    expected = p.clone()
    adamw_step_(expected, g, first, second, **ADAMW)
    adamw_8bit_step_(p, g, c1, c2, a1, a2, **ADAMW)
    # Square roots may differ by a unit of the last place, as torch's are not the nearest.
    torch.testing.assert_close(p, expected, rtol=2e-7, atol=2e-8)
    for found, moment, signed in (((c1, a1), first, True), ((c2, a2), second, False)):
        assert all(map(torch.equal, found, quantize_8bit(moment, signed=signed)))


def test_lion_moves_each_weight_by_the_rate_and_only_its_sign_matters():
    g = draw(500)
    for scale in (1e-6, 1.0, 1e6):
        p, m = torch.zeros(500), torch.zeros(500)
        lion_step_(p, g * scale, m, **LION | {"weight_decay": 0.0})
        assert torch.equal(p, -1e-2 * g.sign())


def test_16_bits_are_rounded_once():
    for dtype in (torch.bfloat16, torch.float16):
        p, g = draw(999, dtype=dtype), draw(999, dtype=dtype, seed=1)
        wide, moments = p.float(), [torch.zeros(999) for _ in range(4)]
        adamw_step_(wide, g.float(), *moments[:2], **ADAMW)
        adamw_step_(p, g, *moments[2:], **ADAMW)
        assert torch.equal(p, wide.to(dtype))
        assert torch.equal(moments[0], moments[2])
        assert torch.equal(moments[1], moments[3])


def test_a_gradient_in_float32_goes_with_a_parameter_in_16_bits():
    p, g = draw(300, dtype=torch.bfloat16), draw(300, seed=1)
    expected = p.float()
    adamw_step_(expected, g, torch.zeros(300), torch.zeros(300), **ADAMW)
    adamw_step_(p, g, torch.zeros(300), torch.zeros(300), **ADAMW)
    assert torch.equal(p, expected.bfloat16())


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_what_does_not_fit_is_refused_by_name_and_nothing_moves(step):
    names = {
        adamw_step_: ("parameter", "gradient", "exp_avg", "exp_avg_sq"),
        adamw_8bit_step_: ("parameter", "gradient", "state1", "state2", "absmax1", "absmax2"),
        lion_step_: ("parameter", "gradient", "exp_avg"),
        lion_8bit_step_: ("parameter", "gradient", "state1", "absmax1"),
    }[step]
    args = arguments()[step]
    before = [each.clone() for each in args]
    for position, name in enumerate(names):
        for bad in (args[position].double(), args[position][:-1], args[position].to("meta")):
            wrong = [*args[:position], bad, *args[position + 1 :]]
            with pytest.raises(InputError) as caught:
                step(*wrong, **numbers(step))
            if position > 0:
                assert name in str(caught.value)
    assert all(map(torch.equal, args, before))


def test_steps_are_counted_from_1():
    for step in (adamw_step_, adamw_8bit_step_):
        for count in (0, -1):
            with pytest.raises(InputError, match="counted from 1"):
                step(*arguments()[step], **ADAMW | {"step": count})


def test_a_parameter_that_asks_for_a_gradient_is_stepped_without_one():
    p, g, m = arguments()[lion_step_]
    p.requires_grad_()
    with pytest.raises(InputError, match="no gradient"):
        lion_step_(p, g, m, **LION)
    with torch.no_grad():
        lion_step_(p, g, m, **LION)
