import pytest
import torch

from ince.errors import InputError
from ince.ops import write_kv_
from ince.ops.backends import reference_only

POOLS = torch.zeros(2, 3, 4, 2, 8)
K, V = torch.randn(2, 5, 2, 8)
SLOTS = torch.tensor([11, 0, 5, 4, 7])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_token_is_where_its_slot_says_and_nothing_else_changes(dtype):
    for is_reference in (False, True):
        pools = torch.full_like(POOLS, 7).to(dtype)
        # A head at a time, as the layers of models have them.
        k, v = (each.to(dtype).transpose(0, 1).contiguous().transpose(0, 1) for each in (K, V))
        if is_reference:
            with reference_only():
                write_kv_(*pools, k, v, SLOTS)
        else:
            write_kv_(*pools, k, v, SLOTS)
        expected = torch.full((2, 12, 2, 8), 7.0, dtype=dtype)
        expected[0, SLOTS], expected[1, SLOTS] = k, v
        assert torch.equal(pools.flatten(1, 2), expected)


def test_the_operator_keeps_the_rules_of_torch_library():
    operator = torch.ops.ince.write_kv_.default
    torch.library.opcheck(operator, (POOLS[0].clone(), POOLS[1].clone(), K, V, SLOTS))


def test_no_tokens_write_nothing():
    pools = POOLS.clone()
    write_kv_(*pools, K[:0], V[:0], SLOTS[:0])
    assert torch.equal(pools, POOLS)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"k": K.int()}, "do not know this type"),
        ({"k": K.half()}, "does not fit k"),
        ({"k": K[..., :4]}, "does not fit k"),
        ({"k": K[:, :1]}, "k does not fit"),
        ({"v": V[:3]}, "v does not fit"),
        ({"v": V.half()}, "are of the type of keys"),
        ({"slots": SLOTS.int()}, "are of the type of keys"),
        ({"slots": SLOTS[:3]}, "k does not fit"),
        ({"slots": torch.tensor(3)}, "k does not fit"),
        ({"k_pool": POOLS[0, 0]}, "not a pool"),
        ({"v_pool": POOLS[0, :1]}, "v_pool does not fit"),
        ({"v_pool": POOLS[1].to("meta")}, "on two devices"),
        ({"slots": torch.tensor([11, 0, 12, 4, 7])}, "a slot that the pools"),
        ({"slots": torch.tensor([11, -1, 5, 4, 7])}, "a slot that the pools"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(changes, what):
    args = {"k_pool": POOLS[0].clone(), "v_pool": POOLS[1].clone(), "k": K, "v": V}
    args = args | {"slots": SLOTS} | changes
    with pytest.raises(InputError, match=what):
        write_kv_(**args)
    with pytest.raises(InputError, match=what), reference_only():
        write_kv_(**args)
    assert not args["k_pool"].any()


def test_pools_that_ask_for_a_gradient_are_refused():
    with pytest.raises(InputError, match="has no gradient"):
        write_kv_(POOLS[0].clone().requires_grad_(), POOLS[1], K, V, SLOTS)
