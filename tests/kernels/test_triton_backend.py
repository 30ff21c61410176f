"""How the GPU backend comes in, and what it does where its kernels cannot run."""

import logging
import subprocess
import sys

import pytest
import torch

from ince.errors import QuantError
from ince.ops import reference
from ince.ops.backends import reference_only
from ince.ops.triton import backend

HERE = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_tried(monkeypatch):
    monkeypatch.setattr(backend, "_reasons", {})
    monkeypatch.setattr(backend, "_failed", {})


@pytest.fixture
def packed():
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    packed, absmax = reference.quantize_4bit(weight, 64, "nf4", False)
    return packed, absmax, None, None


def expand(packed):
    # The function that is registered for CUDA tensors; it takes any.
    return backend._dequantize_4bit(*packed, 64, (3, 64), torch.float32, "nf4")


def expanded(packed):
    return reference.dequantize_4bit(*packed, 64, (3, 64), torch.float32, "nf4")


def test_importing_ince_imports_no_triton():
    code = "import ince, ince.ops, sys; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_operator_has_a_kernel_for_cuda():
    for name in (
        "quantize_4bit",
        "dequantize_4bit",
        "linear_4bit",
        "linear_4bit_input_grad",
        "gemv_4bit",
        "quantize_absmax",
        "dequantize_absmax",
    ):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ince::{name}", "CUDA")


def test_without_triton_the_reference_works_and_that_is_said_once(packed, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "triton", None)
    with caplog.at_level(logging.WARNING, "ince.ops"):
        for _ in range(2):
            assert torch.equal(expand(packed), expanded(packed))
    assert len(caplog.records) == 1
    assert "run on the reference: Triton cannot be imported" in caplog.text


def test_a_device_that_does_not_pass_the_proof_runs_on_the_reference(packed, monkeypatch, caplog):
    pytest.importorskip("triton")
    monkeypatch.setattr("ince.ops.triton.proof.difference", lambda device: "other bits")
    with caplog.at_level(logging.WARNING, "ince.ops"):
        assert torch.equal(expand(packed), expanded(packed))
    assert "other bits" in caplog.text


def test_a_compiler_that_fails_leaves_the_reference(packed, monkeypatch, caplog):
    pytest.importorskip("triton")

    def difference(device):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr("ince.ops.triton.proof.difference", difference)
    with caplog.at_level(logging.WARNING, "ince.ops"):
        assert torch.equal(expand(packed), expanded(packed))
    assert "Triton cannot run here: RuntimeError: Failed to find C compiler." in caplog.text


def test_running_out_of_memory_is_no_verdict(packed, monkeypatch):
    pytest.importorskip("triton")

    def difference(device):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr("ince.ops.triton.proof.difference", difference)
    with pytest.raises(torch.OutOfMemoryError):
        expand(packed)
    assert backend._reasons == {}


def test_a_kernel_that_fails_later_leaves_its_operator_to_the_reference(
    packed, monkeypatch, caplog
):
    errors = pytest.importorskip("triton.runtime.errors")
    backend._reasons[HERE] = None
    calls = []

    def fails(*args):
        calls.append(args)
        raise errors.OutOfResources(300_000, 200_000, "shared memory")

    monkeypatch.setattr("ince.ops.triton.launch.dequantize_4bit", fails)
    with caplog.at_level(logging.WARNING, "ince.ops"):
        for _ in range(2):
            assert torch.equal(expand(packed), expanded(packed))
    assert len(calls) == len(caplog.records) == 1
    assert "dequantize_4bit: OutOfResources" in caplog.text


def test_errors_of_the_input_pass(monkeypatch):
    pytest.importorskip("triton")
    backend._reasons[HERE] = None

    def refuses(*args):
        raise QuantError("1 of 64 weights are not finite")

    monkeypatch.setattr("ince.ops.triton.launch.quantize_4bit", refuses)
    with pytest.raises(QuantError, match="not finite"):
        backend._quantize_4bit(torch.ones(64), 64, "nf4", False)


def test_the_reference_can_be_forced(packed, monkeypatch):
    def never(device):
        raise AssertionError

    monkeypatch.setattr(backend, "_reason_against", never)
    with reference_only():
        assert torch.equal(expand(packed), expanded(packed))


def test_each_operator_falls_back_to_its_own_reference(packed):
    backend._reasons[HERE] = "not here"
    weight, x, grad = torch.randn(3, 64), torch.randn(1, 64), torch.randn(1, 3)
    rest = (64, (3, 64), "nf4")
    coded = backend._quantize_absmax(packed[1])
    pairs = (
        (backend._quantize_4bit, reference.quantize_4bit, (weight, 64, "nf4", False)),
        (backend._quantize_absmax, reference.quantize_absmax, (packed[1],)),
        (backend._dequantize_absmax, reference.dequantize_absmax, coded),
        (backend._linear_4bit, reference.linear_4bit, (x, *packed, None, *rest)),
        (backend._gemv_4bit, reference.gemv_4bit, (x, *packed, None, *rest)),
        (
            backend._linear_4bit_input_grad,
            reference.linear_4bit_input_grad,
            (grad, *packed, *rest),
        ),
    )
    for found, expected, args in pairs:
        one, other = found(*args), expected(*args)
        one, other = (each if isinstance(each, tuple) else (each,) for each in (one, other))
        assert all(map(torch.equal, one, other))


def test_status_says_what_runs_and_why_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status = backend.status()
    assert (status.device_type, status.backend) == ("cuda", "reference")
    assert status.fallback_reason == "no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    triton = pytest.importorskip("triton")
    assert backend.status().detail == f"Triton {triton.__version__}"
    assert backend.status().fallback_reason is None
    backend._reasons[HERE] = "other bits"
    assert backend.status().backend == "reference"
    assert backend.status().fallback_reason == "other bits"
