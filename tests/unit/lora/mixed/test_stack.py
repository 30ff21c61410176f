"""Stacks hold what they were made of, in little memory, for as long as it is true."""

import copy
import pickle

import pytest
import torch

from ince.lora.factors import Factors
from ince.lora.mixed.routing import Routing
from ince.lora.mixed.stack import Stack, StackCache, finish_terms

ADAPTERS = ("a0", "a1")


def factors(*ranks, bias=False, magnitude=False):
    return [
        Factors(
            torch.randn(r, 12),
            torch.randn(10, r),
            2.0,
            torch.randn(10) if bias else None,
            torch.rand(10) if magnitude else None,
        )
        for r in ranks
    ]


def made(layer, routing, cache=None):
    cache = layer.stacks if cache is None else cache
    found = [layer.factors(name) for name in ADAPTERS]
    stack = cache.make(layer, ADAPTERS, found, None, torch.float32, routing)
    assert stack is not None
    return stack


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_stack_is_the_factors_padded_with_zeros(dtype):
    one, other = factors(2, 5)
    stack = Stack.of(("x", "y"), [one, other], None, dtype)
    assert stack.ranks == (2, 5)
    assert stack.a_GDR.shape == (2, 12, 5)
    assert stack.b_GRO.shape == (2, 5, 10)
    assert torch.equal(stack.a_GDR[0, :, :2], one.a_RD.t().to(dtype))
    assert torch.equal(stack.b_GRO[1], (other.b_OR.t() * 2).to(dtype))
    assert not stack.a_GDR[0, :, 2:].any()
    assert not stack.b_GRO[0, 2:].any()
    assert stack.turn_GO is None
    assert stack.shift_GO is None


def test_terms_of_the_end_leave_the_base_alone():
    plain, full = factors(1)[0], factors(1, bias=True, magnitude=True)[0]
    own = torch.randn(10)
    stack = Stack.of(("x", "y"), [plain, full], own, torch.float32)
    assert not stack.turn_GO[[0, 2]].any()
    assert not stack.shift_GO[[0, 2]].any()
    y = torch.randn(10)
    ended = y + stack.turn_GO[1] * y + stack.shift_GO[1]
    torch.testing.assert_close(ended, full.magnitude * (y - own + 2 * full.bias) + own)


def test_no_term_is_made_for_what_is_not_there():
    own = torch.ones(10)
    assert finish_terms(factors(1)[0], own) == (None, None)
    turn, shift = finish_terms(factors(1, magnitude=True)[0], None)
    assert turn is not None
    assert shift is None
    turn, shift = finish_terms(factors(1, bias=True)[0], own)
    assert turn is None
    assert shift is not None


def test_memory_of_an_old_stack_is_taken_and_cleaned():
    old = Stack.of(("x", "y"), factors(5, 5), None, torch.float32)
    address = old.a_GDR.data_ptr()
    one, other = factors(5, 2)
    stack = Stack.of(("x", "y"), [one, other], None, torch.float32, over=old)
    assert stack.a_GDR.data_ptr() == address
    assert torch.equal(stack.a_GDR[0], one.a_RD.t())
    assert not stack.a_GDR[1, :, 2:].any()
    assert not stack.b_GRO[1, 2:].any()
    for changed in (factors(4, 4), factors(5, 5, 5)):
        names = tuple("xyz"[: len(changed)])
        assert Stack.of(names, changed, None, torch.float32, over=old).a_GDR.data_ptr() != address
    assert Stack.of(("x", "y"), factors(5, 5), None, torch.bfloat16, over=old).a_GDR.dtype == (
        torch.bfloat16
    )


def test_a_stack_is_found_in_any_order_and_by_nobody_else(make_layer):
    layer = make_layer()
    routing = Routing(["a0", "a1"])
    stack = made(layer, routing)
    assert layer.stacks.find(ADAPTERS, torch.float32, routing) is stack
    assert layer.stacks.find(ADAPTERS[::-1], torch.float32, Routing(["a1", "a0"])) is stack
    for adapters, dtype in (
        (("a0",), torch.float32),
        (("a0", "a2"), torch.float32),
        (("a0", "a1", "a2"), torch.float32),
        (ADAPTERS, torch.bfloat16),
    ):
        made(layer, routing)
        assert layer.stacks.find(adapters, dtype, routing) is None
        assert layer.stacks.find(ADAPTERS, torch.float32, routing) is None  # it is no longer true


def test_a_changed_parameter_ends_it(make_layer):
    layer = make_layer()
    routing = Routing(["a0", "a1"])
    made(layer, routing)
    layer.lora_A["a0"].weight.add_(1)
    assert layer.stacks.find(ADAPTERS, torch.float32, routing) is None


def test_what_torch_does_not_count_is_seen_in_the_next_call(make_layer):
    layer = make_layer()
    made(layer, Routing(["a0", "a1"]))
    layer.lora_A["a0"].weight.data.add_(1)
    assert layer.stacks.find(ADAPTERS, torch.float32, Routing(["a0", "a1"])) is None


def test_memory_is_told_and_given_back(make_layer):
    layer = make_layer()
    assert layer.stacks.num_bytes == 0
    made(layer, Routing(["a0", "a1"]))
    assert layer.stacks.num_bytes == 2 * 4 * (12 + 10) * 4
    layer.stacks.clear()
    assert layer.stacks.num_bytes == 0


def test_deleting_an_adapter_gives_the_memory_back(make_layer):
    layer = make_layer()
    made(layer, Routing(["a0", "a1"]))
    layer.delete_adapter("a1")
    assert layer.stacks.num_bytes == 0


def test_stacks_are_not_copied_saved_or_counted(make_layer):
    layer = make_layer()
    names = set(layer.state_dict())
    num_values = sum(p.numel() for p in layer.parameters())
    made(layer, Routing(["a0", "a1"]))
    assert set(layer.state_dict()) == names
    assert sum(p.numel() for p in layer.parameters()) == num_values
    assert copy.deepcopy(layer).stacks.num_bytes == 0
    assert pickle.loads(pickle.dumps(layer.stacks)).num_bytes == 0  # noqa: S301


def test_nothing_is_kept_that_cannot_be_watched(make_layer):
    with torch.inference_mode():
        layer = make_layer()
        cache = StackCache()
        found = [layer.factors(name) for name in ADAPTERS]
        routing = Routing(["a0", "a1"])
        assert cache.make(layer, ADAPTERS, found, None, torch.float32, routing) is None


def test_a_stack_made_in_inference_mode_serves_outside(make_layer):
    layer = make_layer()
    with torch.inference_mode():
        first = made(layer, Routing(["a0", "a1"]))
    layer.lora_A["a0"].weight.add_(1)
    second = made(layer, Routing(["a0", "a1"]))  # into the memory of the first
    assert second.a_GDR.data_ptr() == first.a_GDR.data_ptr()
    assert torch.equal(second.a_GDR[0], layer.lora_A["a0"].weight.t())
