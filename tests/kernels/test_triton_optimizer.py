"""How the GPU kernels of optimizer steps come in, and what they compile to, without a GPU.

Their arithmetic is checked in Triton's interpreter, see `interpreted/check_steps.py`.
"""

import logging
import re
import sys

import pytest
import torch

from ince.ops import reference
from ince.ops.triton import backend, optimizer, proven

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is made for Linux alone")

HERE = torch.device("cpu")
NUMBERS = (1e-2, 0.9, 0.99, 0.1)


@pytest.fixture(autouse=True)
def _nothing_tried(monkeypatch):
    monkeypatch.setattr(backend, "_reasons", {})
    monkeypatch.setattr(backend, "_failed", {})
    monkeypatch.setattr(proven, "_differences", {})


def arguments():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(300, generator=generator) for _ in range(3)]


def stepped(kernel):
    args = arguments()
    kernel(*args, *NUMBERS)
    return args


def test_every_operator_has_a_kernel_for_cuda():
    for operator in optimizer.OPERATORS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ince::{operator.name}", "CUDA")


@pytest.mark.parametrize("has_triton", [True, False])
def test_where_kernels_cannot_run_the_reference_steps_and_that_is_said_once(
    monkeypatch, caplog, has_triton
):
    if has_triton:
        pytest.importorskip("triton")
        backend._reasons[HERE] = None
        monkeypatch.setattr(
            "ince.ops.triton.optimizer_proof.difference", lambda device: "other numbers"
        )
    else:
        backend._reasons[HERE] = "not here"
    kernel = optimizer._kernel("lion_step_")
    with caplog.at_level(logging.WARNING, "ince.ops"):
        for _ in range(2):
            assert all(map(torch.equal, stepped(kernel), stepped(reference.lion_step_)))
    assert len(caplog.records) == has_triton
    assert ("other numbers" in caplog.text) == has_triton


@pytest.mark.parametrize("name", ["adamw_8bit", "lion_8bit", "adamw", "lion", "code_8bit"])
def test_nothing_is_fused_or_approximate_but_what_is_meant_to_be(name, tmp_path, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ince.ops.triton import steps

    kernel = getattr(steps, f"{name}_kernel")
    types = {"code": "*u8", "rank": "*u8", "g": "*bf16", "p": "*bf16"}

    def type_of(argument):
        stem = argument.removesuffix("_ptr").rstrip("12")
        if argument.isupper():
            return "constexpr"
        return types.get(stem, "*fp32") if argument.endswith("_ptr") else "fp32"

    signature = {each: type_of(each) for each in kernel.arg_names} | {"count": "i64"}
    constants = {
        (position,): {"ROWS": 4, "TILE": 1024}[each]
        for position, each in enumerate(kernel.arg_names)
        if each.isupper()
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    options = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": False}
    text = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    num_fused = {"adamw": 2, "adamw_8bit": 2, "lion": 2, "lion_8bit": 2, "code_8bit": 0}[name]
    # Eight numbers are a thread's.
    assert len(re.findall(r"\bfma\.rn\.f32\b", text)) == 8 * num_fused
    assert not re.search(r"\.approx|\.ftz", text)
    if "adamw" in name:
        assert len(re.findall(r"\bsqrt\.rn\.f32\b", text)) == 8
