"""Optimizer steps and 8-bit state in Triton's interpreter, against the reference to the bit."""

import math

import numpy as np
import pytest
import torch
from triton.runtime import interpreter

from ince.errors import QuantError
from ince.ops import reference
from ince.ops.reference import steps as reference_steps
from ince.ops.triton import launch_steps, optimizer_proof

# NumPy warns of what a GPU does in silence.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{what} encountered:RuntimeWarning")
    for what in ("overflow", "invalid value", "divide by zero", "underflow")
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (0, 1, 255, 256, 1025, 3000)
ADAMW = (3, 1e-2, 0.9, 0.999, 1e-8, 0.1)


@pytest.fixture(autouse=True)
def _fused(monkeypatch):
    # The interpreter rounds the product of `fma`, which compiled code does not.
    def fma(self, x, y, z):
        x_wide, y_wide, z_wide = (each.data.astype(np.longdouble) for each in (x, y, z))
        with np.errstate(all="ignore"):
            found = (x_wide * y_wide + z_wide).astype(np.float32)
        return interpreter.TensorHandle(found, z.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fma", fma)


def draw(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=generator) * 10 ** (3 * torch.randn(n, generator=generator))


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one.isnan(), other.isnan())
        assert torch.equal(one.nan_to_num(7), other.nan_to_num(7))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_those_of_the_reference(n, signed):
    for dtype in DTYPES:
        values = draw(n).to(dtype).nan_to_num()
        codes, absmax = launch_steps.quantize_8bit(values, signed)
        same((codes, absmax), reference.quantize_8bit(values, signed))
        found = launch_steps.dequantize_8bit(codes, absmax, signed)
        same((found,), (reference.dequantize_8bit(codes, absmax, signed),))


def test_zeros_and_what_is_not_finite():
    values = torch.zeros(600)
    same(launch_steps.quantize_8bit(values, True), reference.quantize_8bit(values, True))
    values[300] = math.inf
    with pytest.raises(QuantError, match="1 of 600"):
        launch_steps.quantize_8bit(values, True)


def arguments(n, dtype, *, bad=False):
    parameter, gradient = draw(n, 1).to(dtype).nan_to_num(), (draw(n, 2) * 1e-3).to(dtype)
    gradient = gradient.nan_to_num()
    if bad:
        gradient[:2] = torch.tensor([math.nan, math.inf]).to(dtype)
    first, second = draw(n, 3), draw(n, 4).square()
    (c1, a1), (c2, a2) = (
        reference.quantize_8bit(first, True),
        reference.quantize_8bit(second, False),
    )
    return {
        "lion_step_": (parameter, gradient, first),
        "lion_8bit_step_": (parameter, gradient, c1, a1),
        "adamw_8bit_step_": (parameter, gradient, c1, c2, a1, a2),
        "adamw_step_": (parameter, gradient, first, second),
    }


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_are_those_of_the_reference(n, dtype):
    for bad in (False, True)[: 1 + (n > 256)]:
        for name, tensors in arguments(n, dtype, bad=bad).items():
            numbers = ADAMW if "adamw" in name else (1e-2, 0.9, 0.99, 0.1)
            found, expected = ([each.clone() for each in tensors] for _ in range(2))
            getattr(launch_steps, name)(*found, *numbers)
            if name == "adamw_step_":
                # torch's square root is not always the nearest number.
                root = reference_steps._nearest_root
                reference_steps._adamw_step_(*expected, root, *numbers)
            else:
                getattr(reference, name)(*expected, *numbers)
            same(found, expected)


def test_the_proof_passes():
    assert optimizer_proof.difference(torch.device("cpu")) is None
