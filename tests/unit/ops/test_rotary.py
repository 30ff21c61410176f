import pytest
import torch

from ince.errors import InputError
from ince.ops import rope, rope_, rope_input_grad

OPS = torch.ops.ince


def drawn(dtype=torch.float32, *, num_tables=2, num_rotated=8):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 5, 3, 8, generator=generator).to(dtype)
    k = torch.randn(2, 5, 1, 8, generator=generator).to(dtype)
    angles = torch.randn(num_tables, 5, num_rotated // 2, generator=generator).repeat(1, 1, 2)
    return q, k, angles.cos().to(dtype), angles.sin().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_turn_the_other_way(dtype):
    q, k, cos, sin = drawn(dtype)
    q, k = q.requires_grad_(), k.requires_grad_()
    turned = rope(q, k, cos, sin)
    grads = [torch.randn_like(each) for each in turned]
    found = torch.autograd.grad(turned, (q, k), grads)
    assert all(map(torch.equal, found, rope_input_grad(*grads, cos, sin)))
    back = [grad.transpose(1, 2).contiguous() for grad in grads]
    rope_(*back, cos, sin, inverse=True)
    assert all(map(torch.equal, found, back))


def test_turning_and_turning_back_changes_nothing_but_rounding():
    q, k, cos, sin = drawn()
    back = rope_input_grad(*rope(q, k, cos, sin), cos, sin)
    for one, other in zip(back, (q, k), strict=True):
        torch.testing.assert_close(one, other)
    kept = q.clone(), k.clone()
    assert rope_(q, k, cos, sin)[0] is q
    rope_(q, k, cos, sin, inverse=True)
    torch.testing.assert_close((q, k), kept)


def test_a_gradient_of_one_of_the_two_is_enough():
    q, k, cos, sin = drawn()
    q.requires_grad_()
    rope(q, k, cos, sin)[1].sum()
    (grad,) = torch.autograd.grad(rope(q, k, cos, sin)[0].sum(), q)
    assert grad.shape == q.shape


@pytest.mark.parametrize("num_rotated", [8, 4])
def test_the_operators_keep_the_rules_of_torch_library(num_rotated):
    q, k, cos, sin = drawn(torch.bfloat16, num_tables=1, num_rotated=num_rotated)
    leaves = q.clone().requires_grad_(), k.clone().requires_grad_()
    torch.library.opcheck(OPS.rope.default, (*leaves, cos, sin))
    grads = [each.detach() for each in rope(q, k, cos, sin)]
    torch.library.opcheck(OPS.rope_input_grad.default, (*grads, cos, sin))
    torch.library.opcheck(OPS.rope_.default, (q, k, cos, sin, True))


def test_meta_tensors_give_the_same_shapes_and_types():
    args = drawn(torch.float16)
    fakes = [each.to("meta") for each in args]
    for operator in (rope, lambda q, k, *rest: rope_input_grad(q.mT, k.mT, *rest)):
        if operator is not rope:
            args = [args[0].transpose(1, 2).mT, args[1].transpose(1, 2).mT, *args[2:]]
            fakes = [each.to("meta") for each in args]
        for real, fake in zip(operator(*args), operator(*fakes), strict=True):
            assert (real.shape, real.dtype, real.stride()) == (
                fake.shape,
                fake.dtype,
                fake.stride(),
            )


def test_it_compiles_into_a_whole_graph():
    torch._dynamo.reset()
    q, k, cos, sin = drawn()
    q.requires_grad_()

    def loss(q):
        turned_q, turned_k = rope(q, k, cos, sin)
        return (turned_q.sin() * turned_k).sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    (expected,) = torch.autograd.grad(loss(q), q)
    (found,) = torch.autograd.grad(compiled(q), q)
    assert torch.equal(found, expected)


def test_angles_that_ask_for_a_gradient_are_refused():
    q, k, cos, sin = drawn()
    turned, _ = rope(q, k, cos.requires_grad_(), sin)
    with pytest.raises(InputError, match="have no gradient"):
        turned.sum().backward()


def test_writing_in_place_is_refused_where_gradients_are_recorded():
    q, k, cos, sin = drawn()
    with pytest.raises(InputError, match="has no gradient"):
        rope_(q.requires_grad_() * 1, k, cos, sin)


Q, K, COS, SIN = drawn()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"q": Q[0]}, "wrong number of axes"),
        ({"cos": COS[0]}, "wrong number of axes"),
        ({"q": Q.double()}, "do not know this type"),
        ({"sin": torch.tensor(1.0)}, "a single number has no row"),
        ({"k": K[:, :4]}, "more than the number of heads"),
        ({"k": K[..., :4]}, "more than the number of heads"),
        ({"cos": COS[:, :4]}, "of other tokens"),
        ({"cos": COS.repeat(2, 1, 1)}, "of other tokens"),
        ({"cos": COS[..., :5]}, "cannot be turned"),
        ({"cos": COS.repeat(1, 1, 2)}, "cannot be turned"),
        ({"sin": SIN[:1]}, "must be alike"),
        ({"sin": SIN.half()}, "must be alike"),
        ({"k": K.half()}, "must be alike"),
        ({"k": K.to("meta")}, "on two devices"),
    ],
)
def test_what_does_not_fit_is_refused(changes, what):
    with pytest.raises(InputError, match=what):
        rope(**{"q": Q, "k": K, "cos": COS, "sin": SIN} | changes)
