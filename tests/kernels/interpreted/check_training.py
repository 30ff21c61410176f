"""Kernels of training in Triton's interpreter, against the reference within rounding."""

import importlib

import pytest
import torch

from ince.ops import reference
from ince.ops.triton.training import OPERATORS
from ince.ops.triton.training_proof import cases, difference, results

# The interpreter's numpy warns of infinities that a selection drops.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HERE = torch.device("cpu")
NAMES = {operator.name: module for module, each in OPERATORS.items() for operator in each}


def launch_of(name):
    return getattr(importlib.import_module(f"ince.ops.triton.{NAMES[name]}"), name)


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def compare(name, args, *, exact=False):
    found, wanted = (results(f, args) for f in (launch_of(name), getattr(reference, name)))
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in wanted]
    for one, other in zip(found, wanted, strict=True):
        if exact:
            assert torch.equal(one, other)
            continue
        scale = max(1.0, float(other.float().abs().max())) if other.numel() else 1.0
        rounding = torch.finfo(other.dtype).eps * (16 if other.dtype == torch.float32 else 2)
        torch.testing.assert_close(one, other, rtol=rounding, atol=rounding * scale, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_kernel_passes_its_proof(name):
    assert difference(name, launch_of(name), HERE) is None


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_kernel_does_not_pass(name):
    right = getattr(reference, name)

    def wrong(*args):
        found = right(*args)
        floats = [t for t in (found if isinstance(found, tuple) else (found,)) if t is not None]
        (floats or [args[0]])[0].add_(0.25)
        return found

    assert name in difference(name, wrong, HERE)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_equal_the_reference_in_half_precision(name):
    for args in cases(name, torch.float16):
        compare(name, args)


@pytest.mark.parametrize("num_cols", [1, 64, 4096, 4097])
def test_norms_of_any_width(num_cols):
    x, dy, weight = (drawn(2, num_cols, seed=s) for s in range(3))
    weight = weight[0]
    compare("rms_norm", [x, weight, 1e-5, 0.0, False])
    _, rstd = reference.rms_norm(x, weight, 1e-5, 0.0, False)
    compare("rms_norm_input_grad", [dy, x, weight, rstd, 0.0])


def test_norms_of_a_view_and_of_nothing():
    x = drawn(6, 96).T
    compare("rms_norm", [x, drawn(6), 1e-5, 0.0, False])
    residual, dy = drawn(6, 96, seed=1).T, drawn(6, 96, seed=2).T
    _, rstd = reference.rms_norm(x, drawn(6), 1e-5, 0.0, False)
    compare("rms_norm_add_input_grad_", [residual, dy, x, drawn(6), rstd, 1.0])
    compare("rms_norm", [drawn(0, 6), drawn(6), 1e-5, 0.0, False])


def test_a_norm_with_a_wide_weight_stays_wide():
    x = drawn(3, 40, dtype=torch.bfloat16)
    compare("rms_norm", [x, drawn(40), 1e-5, 0.0, False])


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "gelu"])
def test_gates_keep_the_digits_of_large_negative_arguments(kind):
    gate = torch.cat([torch.linspace(-9, 9, 1001), torch.tensor([0.0, -0.0, -80.0, 80.0, 1e30])])
    up, dh = torch.ones_like(gate), torch.full_like(gate, 2.0)
    found = launch_of("gated_activation")(gate, up, kind)
    wanted = reference.gated_activation(gate, up, kind)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-35)
    for one, other in zip(
        launch_of("gated_activation_grad")(dh[:-1], gate[:-1], up[:-1], kind),
        reference.gated_activation_grad(dh[:-1], gate[:-1], up[:-1], kind),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=3e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["silu", "gelu"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_backward_gives_the_product_of_the_forward_to_the_bit(kind, dtype):
    dh, gate, up = (drawn(3, 347, seed=s, dtype=dtype) for s in range(3))
    h = launch_of("gated_activation")(gate, up, kind)
    launch_of("gated_activation_backward_")(dh, gate, up, kind)
    assert torch.equal(dh, h)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads, size, rotated", [(1, 2, 2), (3, 16, 16), (5, 12, 6), (9, 64, 64)])
def test_heads_turn_as_in_the_reference_to_the_bit(dtype, heads, size, rotated):
    q, k = drawn(2, 5, heads, size, dtype=dtype), drawn(2, 5, 1, size, seed=1, dtype=dtype)
    for num_tables in (1, 2):
        angle = 9 * drawn(num_tables, 5, rotated, seed=2)
        angles = [angle.cos(), angle.sin()]
        compare("rope", [q, k, *angles], exact=True)
        compare("rope_input_grad", [q.transpose(1, 2), k.transpose(1, 2), *angles], exact=True)
        for inverse in (False, True):
            compare("rope_", [q, k, *angles, inverse], exact=True)


def test_heads_in_another_order_of_memory_turn_in_place():
    angle = drawn(1, 5, 8)
    turned = []
    for turn in (launch_of("rope_"), reference.rope_):
        q = drawn(2, 3, 5, 8, seed=1).transpose(1, 2)
        turn(q, q[:, :, :1].clone(), angle.cos(), angle.sin(), False)
        turned.append(q)
    assert torch.equal(*turned)


@pytest.mark.parametrize("num_classes", [1, 3, 8192, 9001])
@pytest.mark.parametrize("softcap", [0.0, 30.0])
def test_losses_and_gradients_of_any_vocabulary(num_classes, softcap):
    logits = 5 * drawn(3, num_classes)
    targets = torch.tensor([0, num_classes - 1, -100])
    compare("cross_entropy", [logits, targets, softcap])
    compare("cross_entropy_grad_", [logits, targets, 0.5, softcap, None])
    compare("cross_entropy_input_grad", [logits, targets, softcap, torch.tensor([1.0, 2.0, 3.0])])


def test_extreme_logits():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-torch.inf, 1.0, 2.0], [3e38, 3e38, -3e38]])
    targets = torch.tensor([1, 2, 0])
    compare("cross_entropy", [logits, targets, 0.0])
    compare("cross_entropy_grad_", [logits, targets, 1.0, 0.0, None])
    nan = torch.tensor([[torch.nan, 1.0, 2.0]])
    assert launch_of("cross_entropy")(nan, torch.tensor([1]), 0.0).isnan().all()


def test_a_target_that_is_none_has_no_number_for_a_loss():
    losses = launch_of("cross_entropy")(drawn(3, 7), torch.tensor([7, -1, -100]), 0.0)
    assert losses[:2].isnan().all()
    assert losses[2] == 0
