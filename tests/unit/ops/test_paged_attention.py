import pytest
import torch

from ince.errors import InputError
from ince.ops import paged_attention
from ince.ops.backends import reference_only

INTS = torch.int32


def drawn(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(4, 4, 8, generator=generator).to(dtype)
    pools = torch.randn(2, 5, 16, 2, 8, generator=generator).to(dtype)
    return {
        "q": q,
        "k_pool": pools[0],
        "v_pool": pools[1],
        "block_table": torch.tensor([[4, 0], [2, -1]], dtype=INTS),
        "query_starts": torch.tensor([0, 1, 4], dtype=INTS),
        "context_lengths": torch.tensor([20, 3], dtype=INTS),
        "scale": 0.3,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_operator_keeps_the_rules_of_torch_library(dtype):
    operator = torch.ops.ince.paged_attention.default
    args = (*drawn(dtype).values(), 3, 2.0)
    torch.library.opcheck(operator, args)
    fakes = [arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in args]
    fake, real = operator(*fakes), operator(*args)
    assert (real.shape, real.dtype, real.stride()) == (fake.shape, fake.dtype, fake.stride())


def test_it_compiles_into_a_whole_graph():
    torch._dynamo.reset()
    args = drawn()
    compiled = torch.compile(paged_attention, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(**args), paged_attention(**args))


def test_nothing_asked_is_nothing_given():
    args = drawn() | {
        "q": torch.empty(0, 4, 8),
        "block_table": torch.empty(0, 0, dtype=INTS),
        "query_starts": torch.zeros(1, dtype=INTS),
        "context_lengths": torch.empty(0, dtype=INTS),
    }
    assert paged_attention(**args).shape == (0, 4, 8)


ARGS = drawn()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"q": ARGS["q"].double()}, "do not know this type"),
        ({"q": ARGS["q"][0]}, "cannot take"),
        ({"q": ARGS["q"][:, :3]}, "cannot see"),
        ({"q": ARGS["q"].half()}, "does not fit q"),
        ({"q": ARGS["q"][..., :4]}, "does not fit q"),
        ({"k_pool": ARGS["k_pool"][0]}, "not a pool"),
        ({"k_pool": ARGS["k_pool"][:, :0]}, "not a pool"),
        ({"v_pool": ARGS["v_pool"][1:]}, "v_pool does not fit"),
        ({"v_pool": ARGS["v_pool"].half()}, "v_pool does not fit"),
        ({"block_table": ARGS["block_table"].long()}, "not a table"),
        ({"block_table": ARGS["block_table"][0]}, "not a table"),
        ({"block_table": ARGS["block_table"][:1]}, "block_table does not fit"),
        ({"query_starts": ARGS["query_starts"][1:]}, "query_starts does not fit"),
        ({"context_lengths": ARGS["context_lengths"].float()}, "not a table"),
        ({"window": -1}, "can be negative"),
        ({"softcap": -0.5}, "can be negative"),
        ({"softcap": float("nan")}, "can be negative"),
        ({"block_table": ARGS["block_table"].to("meta")}, "on two devices"),
        # What only the numbers say.
        ({"query_starts": torch.tensor([0, 1, 3], dtype=INTS)}, "own all queries"),
        ({"query_starts": torch.tensor([1, 1, 4], dtype=INTS)}, "own all queries"),
        ({"query_starts": torch.tensor([0, 5, 4], dtype=INTS)}, "more queries than places"),
        ({"query_starts": torch.tensor([0, -1, 4], dtype=INTS)}, "more queries than places"),
        ({"context_lengths": torch.tensor([33, 3], dtype=INTS)}, "more queries than places"),
        ({"context_lengths": torch.tensor([20, 2], dtype=INTS)}, "more queries than places"),
        ({"context_lengths": torch.tensor([-20, 3], dtype=INTS)}, "more queries than places"),
        ({"block_table": torch.tensor([[5, 0], [2, 9]], dtype=INTS)}, "a block that the pools"),
        ({"block_table": torch.tensor([[0, -1], [2, 9]], dtype=INTS)}, "a block that the pools"),
    ],
)
def test_what_does_not_fit_is_refused(changes, what):
    with pytest.raises(InputError, match=what):
        paged_attention(**ARGS | changes)
    with pytest.raises(InputError, match=what), reference_only():
        paged_attention(**ARGS | changes)
