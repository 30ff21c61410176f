"""The GPU kernels of training without a GPU: their registration, and what they compile to.

Their arithmetic is checked in Triton's interpreter, see `interpreted/check_training.py`.
"""

import logging
import sys

import pytest
import torch

from ince.errors import InputError
from ince.ops import reference
from ince.ops.triton import backend, proven, training
from ince.ops.triton.training import OPERATORS
from ince.ops.triton.training_proof import cases, results

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is made for Linux alone")

HERE = torch.device("cpu")
MODULES = [(module, each.name) for module, group in OPERATORS.items() for each in group]
SIZES = {"N": "i32", "V": "i32", "num_elements": "i32"}
NUMBERS = {"eps": "fp32", "offset": "fp32", "scale": "fp32", "softcap": "fp32"}


@pytest.fixture(autouse=True)
def _nothing_tried(monkeypatch):
    monkeypatch.setattr(backend, "_reasons", {})
    monkeypatch.setattr(backend, "_failed", {})
    monkeypatch.setattr(proven, "_differences", {})


@pytest.mark.parametrize("module, name", MODULES)
def test_without_the_device_the_reference_does_the_work(module, name):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ince::{name}", "CUDA")
    backend._reasons[HERE] = "not here"
    kernel = training._kernel(module, name)
    for args in cases(name, torch.float32):
        pairs = (results(kernel, args), results(getattr(reference, name), args))
        assert all(map(torch.equal, *pairs))


def test_a_kernel_that_computes_something_else_is_left_out_once(monkeypatch, caplog):
    pytest.importorskip("triton")
    backend._reasons[HERE] = None
    calls = []

    def wrong(gate, up, kind):
        calls.append(kind)
        return gate * up

    monkeypatch.setattr("ince.ops.triton.gated.gated_activation", wrong)
    kernel = training._kernel("gated", "gated_activation")
    gate, up = torch.randn(2, 5), torch.randn(2, 5)
    with caplog.at_level(logging.WARNING, "ince.ops"):
        for _ in range(2):
            expected = reference.gated_activation(gate, up, "silu")
            assert torch.equal(kernel(gate, up, "silu"), expected)
    assert len(calls) == len(caplog.records) == 1
    assert "gated_activation in torch.bfloat16 is off by" in caplog.text
    assert "gated_activation" in backend._failed[HERE, "gated_activation"]


def test_a_kernel_that_passed_is_not_compared_again(monkeypatch):
    pytest.importorskip("triton")
    backend._reasons[HERE] = None
    monkeypatch.setattr("ince.ops.triton.norm.rms_norm", reference.rms_norm)
    kernel = training._kernel("norm", "rms_norm")
    x, weight = torch.randn(3, 8), torch.ones(8)
    kernel(x, weight, 1e-6, 0.0, False)
    monkeypatch.setattr("ince.ops.triton.training_proof.difference", None)
    expected = reference.rms_norm(x, weight, 1e-6, 0.0, False)
    assert all(map(torch.equal, kernel(x, weight, 1e-6, 0.0, False), expected))


def test_checks_come_before_the_kernel():
    with pytest.raises(InputError, match="no such gated activation"):
        torch.ops.ince.gated_activation(torch.ones(2), torch.ones(2), "relu")


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """Compiles for a chip what `start` would launch; returns the assembler's text."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def compile_for(kernel, pointer, constants, **types):
        names = kernel.arg_names
        known = {**SIZES, **NUMBERS, **types}
        signature = {
            name: pointer if name.endswith("_ptr") and name not in known else known.get(name, "i32")
            for name in names
        }
        signature |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        options = {"num_warps": 4, "enable_fp_fusion": False}
        return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]

    return compile_for


@pytest.mark.parametrize("pointer", ["*bf16", "*fp32"])
def test_norms_compile(compiled, pointer):
    from ince.ops.triton.norm import rms_norm_input_grad_kernel, rms_norm_kernel

    ptx = compiled(rms_norm_kernel, pointer, {"ROUND_FIRST": True, "COLS": 4096}, rstd_ptr="*fp32")
    assert "sqrt.rn.f32" in ptx
    ptx += compiled(
        rms_norm_input_grad_kernel, pointer, {"ADD": True, "COLS": 4096}, rstd_ptr="*fp32"
    )
    assert ".f64" not in ptx


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "gelu"])
def test_gates_compile_without_float64(compiled, kind):
    from ince.ops.triton.gated import gated_grad_kernel, gated_kernel

    ptx = compiled(gated_kernel, "*bf16", {"KIND": kind, "SIZE": 1024})
    ptx += compiled(gated_grad_kernel, "*bf16", {"KIND": kind, "WITH_H": True, "SIZE": 1024})
    assert "ex2.approx" in ptx
    assert ".f64" not in ptx


@pytest.mark.parametrize("inverse", [False, True])
def test_turning_rounds_each_product(compiled, inverse):
    from ince.ops.triton.rotary import rope_kernel

    constants = {"INVERSE": inverse, "COPY": True, "HEADS": 8, "HALF": 64, "SIZE": 128}
    ptx = compiled(rope_kernel, "*bf16", constants)
    assert "fma.rn" not in ptx
    assert "bar.sync" in ptx


@pytest.mark.parametrize("is_capped", [False, True])
def test_cross_entropy_compiles(compiled, is_capped):
    from ince.ops.triton.cross_entropy import cross_entropy_kernel

    constants = {"CAPPED": is_capped, "WEIGHTED": True, "LOSS": True, "GRAD": True, "COLS": 8192}
    types = {"target_ptr": "*i64", "weight_ptr": "*fp32", "loss_ptr": "*fp32"}
    ptx = compiled(cross_entropy_kernel, "*bf16", constants, **types)
    assert "bar.sync" in ptx
    assert ".f64" not in ptx
