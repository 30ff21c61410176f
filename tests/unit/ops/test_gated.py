import pytest
import torch

from ince.errors import InputError
from ince.ops import ACTIVATIONS, gated_activation, gated_activation_backward_

OPS = torch.ops.ince


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exact(gate, up, kind):
    """In the type of the arguments."""
    if kind == "gelu_tanh":
        return torch.nn.functional.gelu(gate, approximate="tanh") * up
    return getattr(torch.nn.functional, kind)(gate) * up


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_go_to_gate_and_up(kind, dtype):
    gate, up, dh = (draw(2, 7, 40, dtype=dtype, seed=seed) for seed in range(3))
    leaves = [tensor.double().requires_grad_() for tensor in (gate, up)]
    h = exact(*leaves, kind)
    expected = torch.autograd.grad(h, leaves, dh.double())
    gate, up = gate.requires_grad_(), up.requires_grad_()
    found = gated_activation(gate, up, kind)
    grads = torch.autograd.grad(found, (gate, up), dh)
    close = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    for one, other in zip((found, *grads), (h, *expected), strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=close, atol=close / 8)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_the_backward_in_place_is_that_of_autograd(kind):
    dh, gate, up = (draw(5, 9, seed=seed, dtype=torch.bfloat16) for seed in range(3))
    leaves = [tensor.clone().requires_grad_() for tensor in (gate, up)]
    h = gated_activation(*leaves, kind)
    expected = torch.autograd.grad(h, leaves, dh)
    gated_activation_backward_(dh, gate, up, kind)
    assert torch.equal(gate, expected[0])
    assert torch.equal(up, expected[1])
    assert torch.equal(dh, h)


def test_what_is_kept_is_not_changed_by_a_backward():
    gate, up = draw(4, 6).requires_grad_(), draw(4, 6, seed=1).requires_grad_()
    h = gated_activation(gate, up)
    first = torch.autograd.grad(h, (gate, up), torch.ones_like(h), retain_graph=True)
    second = torch.autograd.grad(h, (gate, up), torch.ones_like(h))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("kind", ["gelu", "silu"])
def test_the_operators_keep_the_rules_of_torch_library(kind):
    dh, gate, up = (draw(3, 5, seed=seed, dtype=torch.bfloat16) for seed in range(3))
    leaves = gate.clone().requires_grad_(), up.clone().requires_grad_()
    torch.library.opcheck(OPS.gated_activation.default, (*leaves, kind))
    torch.library.opcheck(OPS.gated_activation_backward_.default, (dh, gate, up, kind))


def test_meta_tensors_give_the_same_shapes_and_types():
    gate = draw(3, 5, dtype=torch.float16)
    fake = gated_activation(gate.to("meta"), gate.to("meta"))
    assert (fake.shape, fake.dtype, fake.device.type) == (gate.shape, gate.dtype, "meta")


def test_it_compiles_into_a_whole_graph():
    torch._dynamo.reset()
    gate, up = draw(3, 8).requires_grad_(), draw(3, 8, seed=1)

    def loss(gate):
        return gated_activation(gate, up).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    (expected,) = torch.autograd.grad(loss(gate), gate)
    (found,) = torch.autograd.grad(compiled(gate), gate)
    assert torch.equal(found, expected)


def test_writing_in_place_is_refused_where_gradients_are_recorded():
    dh, gate, up = (draw(3, 5, seed=seed) for seed in range(3))
    kept = gate.clone().requires_grad_() * 1
    with pytest.raises(InputError, match="has no gradient"):
        gated_activation_backward_(dh, kept, up)
    with torch.no_grad():
        gated_activation_backward_(dh, kept, up)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"kind": "sliu"}, "silu"),
        ({"gate": torch.tensor(1.0)}, "a single number has no row"),
        ({"gate": draw(3, 5).double()}, "do not know this type"),
        ({"up": draw(3, 5).half()}, "up and gate are of two types"),
        ({"up": draw(3, 1)}, "up does not fit"),
        ({"dh": draw(5)}, "dh does not fit"),
        ({"dh": draw(3, 5).bfloat16()}, "dh and gate are of two types"),
        ({"up": torch.ones(3, 5, device="meta")}, "on two devices"),
    ],
)
def test_what_does_not_fit_is_refused(changes, what):
    args = {"dh": draw(3, 5), "gate": draw(3, 5), "up": draw(3, 5), "kind": "silu"}
    with pytest.raises(InputError, match=what):
        gated_activation_backward_(**args | changes)
    del args["dh"]
    changes = {name: value for name, value in changes.items() if name != "dh"}
    if changes:
        with pytest.raises(InputError, match=what):
            gated_activation(**args | changes)
