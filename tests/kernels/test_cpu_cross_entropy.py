"""Cross-entropy on the CPU: losses within 1e-6 of float64 (of the loss and of the logits' range),
probabilities within 16 float32 roundings and one of their type.

Probabilities below 2**-125 are zero.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ince.ops import reference
from ince.ops.cpu.cross_entropy import cross_entropy, cross_entropy_grad_

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
UNIT = 2.0**-24

cases = {
    "rows": st.integers(0, 5),
    "classes": st.one_of(st.integers(1, 70), st.sampled_from((511, 512, 513, 5000))),
    "dtype": st.sampled_from(DTYPES),
    "scale": st.sampled_from((0.1, 3.0, 60.0)),
    "softcap": st.sampled_from((0.0, 30.0)),
    "seed": st.integers(0, 1000),
}


@given(**cases)
@settings(max_examples=60)
def test_losses_and_gradients_are_those_of_float64(
    in_each_set, assert_within, rows, classes, dtype, scale, softcap, seed
):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, classes, generator=generator) * scale).to(dtype)
    targets = torch.randint(0, classes, (rows,), generator=generator)
    z = logits.double()
    slope = torch.ones_like(z)
    if softcap:
        slope = 1 - torch.tanh(z / softcap).square()
        z = softcap * torch.tanh(z / softcap)
    expected = torch.nn.functional.cross_entropy(z, targets, reduction="none")
    reach = z.abs().amax(1) + expected.abs() + 1
    (losses,) = in_each_set(lambda: (cross_entropy(logits, targets, softcap),))
    assert bool(((losses.double() - expected).abs() <= 1e-6 * reach).all())

    def in_place():
        buffer = logits.clone()
        return cross_entropy_grad_(buffer, targets, 0.5, softcap, None), buffer

    total, grad = in_each_set(in_place)
    torch.testing.assert_close(total.double(), losses.double().sum(), rtol=1e-6, atol=1e-6)
    shares = torch.softmax(z, 1)
    onehot = torch.nn.functional.one_hot(targets, classes).double()
    wide = z.abs().amax(1, keepdim=True) if rows else 0
    slack = UNIT * (16 + 4 * wide) * (shares + onehot) + 2.0**-125
    assert_within(grad, 0.5 * (shares - onehot) * slope, units=0.5, slack=slack)
    other = logits.clone()
    reference.cross_entropy_grad_(other, targets, 0.5, softcap, None)
    assert_within(grad, other, units=1, slack=2 * slack)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_without_numbers_end_and_spoil_no_other(in_each_set, dtype):
    logits = torch.randn(5, 700, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[0] = -math.inf
    logits[1, 600] = math.nan
    logits[2, 3] = math.inf
    logits[3, :650] = -math.inf
    targets = torch.tensor([1, 1, 1, 690, 1])
    (losses,) = in_each_set(lambda: (cross_entropy(logits, targets, 0.0),))
    assert losses.isfinite().tolist() == [False, False, False, True, True]

    def in_place():
        buffer = logits.clone()
        return cross_entropy_grad_(buffer, targets, 1.0, 0.0, None), buffer

    _, grad = in_each_set(in_place)
    assert grad[3:].isfinite().all()
    assert grad[:3].isnan().any(1).all()
    assert not grad[3, :650].any()


def test_slices_and_ignored_rows(in_each_set):
    wide = torch.randn(4, 90, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([3, -100, 0, 29])
    for view in (wide[:, 30:60], wide.T[:30].T, wide[:, ::3]):
        plain = view.contiguous()
        expected_total = cross_entropy_grad_(plain, targets, 1.0, 0.0, None)
        buffer = wide.clone().as_strided(view.shape, view.stride(), view.storage_offset())
        total = cross_entropy_grad_(buffer, targets, 1.0, 0.0, None)
        assert torch.equal(buffer, plain)
        assert torch.equal(total, expected_total)
        assert not buffer[1].any()
