"""The GPU kernels of serving without a GPU: their registration, and what they compile to.

Their arithmetic is checked in Triton's interpreter, see `interpreted/check_serving.py`.
"""

import sys

import pytest
import torch

from ince.ops import reference
from ince.ops.triton import backend, proven, serving
from ince.ops.triton.serving import OPERATORS
from ince.ops.triton.serving_proof import cases

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is made for Linux alone")

HERE = torch.device("cpu")
MODULES = [(module, each.name) for module, group in OPERATORS.items() for each in group]
NUMBERS = {"scale": "fp32", "softcap": "fp32"}
TABLES = dict.fromkeys(("table_ptr", "starts_ptr", "lengths_ptr"), "*i32")


@pytest.mark.parametrize("module, name", MODULES)
def test_without_the_device_the_reference_does_the_work(module, name, monkeypatch):
    monkeypatch.setattr(backend, "_reasons", {HERE: "not here"})
    monkeypatch.setattr(backend, "_failed", {})
    monkeypatch.setattr(proven, "_differences", {})
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ince::{name}", "CUDA")
    kernel = serving._kernel(module, name)
    for args in cases(name, torch.float32):
        results = []
        for function in (kernel, getattr(reference, name)):
            own = [arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in args]
            returned = function(*own)
            results.append(own[0] if returned is None else returned)
        assert torch.equal(*results)


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """Compiles for a chip what `start` would launch; returns the assembler's text."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def compile_for(kernel, pointer, constants, **types):
        known = {**NUMBERS, **TABLES, **types}
        signature = {
            name: known.get(name, pointer if name.endswith("_ptr") else "i32")
            for name in kernel.arg_names
        }
        signature |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        options = {"num_warps": 4, "enable_fp_fusion": True}
        return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]

    return compile_for


@pytest.mark.parametrize("pointer", ["*bf16", "*fp32"])
def test_attention_compiles_and_multiplies_16_bits_on_the_tensor_cores(compiled, pointer):
    from ince.ops.triton.paged_attention import paged_attention_kernel

    sizes = {"CAPPED": True, "GROUP": 3, "QUERIES": 1, "ROWS": 16, "KEYS": 32, "WIDTH": 64}
    ptx = compiled(paged_attention_kernel, pointer, {**sizes, "SEQUENCES": 32})
    assert ("mma.sync" in ptx) == (pointer == "*bf16")
    assert ".f64" not in ptx


def test_writing_keys_compiles(compiled):
    from ince.ops.triton.paged_attention import write_kv_kernel

    ptx = compiled(write_kv_kernel, "*bf16", {"SIZE": 256}, slot_ptr="*i64")
    assert "st.global.b16" in ptx


@pytest.mark.parametrize("block", ["float32", "bfloat16"])
def test_updates_compile_and_sum_in_float32(compiled, block):
    import triton.language as tl

    from ince.ops.triton.lora_segments import expand_kernel, shrink_kernel

    sizes = {"KIND": getattr(tl, block), "ROWS": 16, "RANKS": 16}
    types = {"tile_ptr": "*i64", "product_ptr": "*fp32"}
    ptx = compiled(shrink_kernel, "*bf16", {**sizes, "DEPTH": 64}, **types)
    ptx += compiled(expand_kernel, "*bf16", {**sizes, "COLUMNS": 64}, **types)
    assert "fma.rn.f32" in ptx
    assert "tf32" not in ptx
    assert ".f64" not in ptx
