"""The GPU kernels compiled without a GPU: Triton brings an assembler for NVIDIA's chips.

The interpreter cannot show what a compiler makes of the arithmetic. The text it compiles to can:
a fused multiplication and addition, an approximate division or a flush of small numbers to zero
has a name there, and any of them would give other bits than the reference.
"""

import re
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is made for Linux alone")

AMPERE, HOPPER = 80, 90
QUANTIZE = {
    "weight_ptr": "*fp32",
    "midpoint_ptr": "*fp32",
    "order_ptr": "*u8",
    "value_ptr": "*fp32",
    "factor_ptr": "*fp32",
    "packed_ptr": "*u8",
    "absmax_ptr": "*fp32",
    "first_block": "i32",
    "num_weights": "i64",
}
NESTED = {"absmax_ptr": "*u8", "nested_ptr": "*fp32", "offset_ptr": "*fp32", "map_ptr": "*fp32"}
EXPAND = {
    **NESTED,
    "packed_ptr": "*i32",
    "code_ptr": "*fp32",
    "first_tile": "i32",
    "num_weights": "i64",
}
PRODUCT = {**NESTED, "packed_ptr": "*i32", "code_ptr": "*fp32", "N": "i32", "K": "i32"}
TILE = {"NESTED": True, "BLOCKSIZE": 64, "GROUP": 64}


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
    yield
    patch.undo()


def compiled(kernel, types, constants, chip=HOPPER, *, contract=False, num_warps=4, num_stages=2):
    """What `start` would launch; pointers are aligned, and sizes multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    unknown = {
        kernel.params[i].name for i in range(len(names)) if kernel.params[i].do_not_specialize
    }
    aligned = [
        name
        for name in names
        if signature[name].startswith("*") or (name in ("M", "N", "K") and name not in unknown)
    ]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={name: constants.get(name) for name in names if name not in types},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": contract}
    return triton.compile(source, target=GPUTarget("cuda", chip, 32), options=options)


def assert_rounds_each_operation(ptx):
    assert not re.findall(r"\bfma\.\S+", ptx)
    assert not re.findall(r"\S+\.ftz\S*", ptx)
    assert not re.findall(r"\S+\.approx\S*|div\.full\S*", ptx)
    assert not re.findall(r"\S+\.f64\S*", ptx)


@pytest.mark.parametrize("chip", [AMPERE, HOPPER])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_expanding_rounds_twice_and_reads_words(chip, dtype):
    from ince.ops.triton.kernels import expand_kernel

    constants = {"NESTED": True, "BLOCKSIZE": 64, "WHOLE": True, "ROWS": 32, "COLS": 32}
    types = {**EXPAND, "out_ptr": f"*{dtype}"}
    ptx = compiled(expand_kernel, types, constants, chip, num_warps=8).asm["ptx"]
    assert_rounds_each_operation(ptx)
    assert "mul.rn.f32" in ptx
    assert "add.rn.f32" in ptx
    assert ("cvt.rn.bf16x2.f32" in ptx) == (dtype == "bf16")
    # Sixteen bytes at a time, each thread what it has expanded.
    assert "st.global.v4" in ptx


@pytest.mark.parametrize("is_short", [False, True])
def test_quantizing_divides_exactly(is_short):
    from ince.ops.triton.kernels import quantize_kernel

    constants = {"SHORT": is_short, "NUM_FACTORS": 8, "BLOCKSIZE": 64, "ROUNDS": 6, "ROWS": 4}
    if is_short:
        constants["ROWS"] = 1
    ptx = compiled(quantize_kernel, QUANTIZE, constants).asm["ptx"]
    assert_rounds_each_operation(ptx)
    assert "div.rn.f32" in ptx


def test_coding_scales_rounds_each_operation():
    from ince.ops.triton.kernels import code_absmax_kernel, expand_absmax_kernel

    types = {
        "absmax_ptr": "*fp32",
        "offset_ptr": "*fp32",
        "midpoint_ptr": "*fp32",
        "code_ptr": "*u8",
        "nested_ptr": "*fp32",
        "num_scales": "i32",
    }
    ptx = compiled(code_absmax_kernel, types, {"BLOCKSIZE": 256}).asm["ptx"]
    assert_rounds_each_operation(ptx)
    assert "div.rn.f32" in ptx
    types = {**NESTED, "code_ptr": "*u8", "out_ptr": "*fp32", "num_scales": "i32"}
    del types["absmax_ptr"]
    ptx = compiled(expand_absmax_kernel, types, {"TILE": 1024}).asm["ptx"]
    assert_rounds_each_operation(ptx)


@pytest.mark.parametrize("chip", [AMPERE, HOPPER])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_a_single_row_compiles(chip, dtype):
    from ince.ops.triton.products import gemv_kernel

    x = "*fp32" if dtype == "fp32" else "*i32"
    types = {**PRODUCT, "x_ptr": x, "y_ptr": f"*{dtype}", "bias_ptr": f"*{dtype}"}
    constants = {**TILE, "HAS_BIAS": True, "BLOCK_N": 8, "BLOCK_K": 1024}
    ptx = compiled(gemv_kernel, types, constants, chip, contract=True).asm["ptx"]
    assert "fma.rn.f32" in ptx


@pytest.mark.parametrize("chip", [AMPERE, HOPPER])
@pytest.mark.parametrize("block_m", [16, 128])
def test_few_rows_and_their_gradient_use_the_tensor_cores(chip, block_m):
    from ince.ops.triton.products import input_grad_kernel, linear_kernel

    multiply = "wgmma.mma_async" if (chip, block_m) == (HOPPER, 128) else "mma.sync"
    sizes = {**TILE, "BLOCK_M": block_m, "BLOCK_N": 64, "BLOCK_K": 64}
    types = {**PRODUCT, "M": "i32", "x_ptr": "*bf16", "y_ptr": "*bf16"}
    constants = {**sizes, "HAS_BIAS": False}
    assert multiply in compiled(linear_kernel, types, constants, chip).asm["ptx"]
    types = {**PRODUCT, "M": "i32", "grad_ptr": "*bf16", "out_ptr": "*bf16"}
    assert multiply in compiled(input_grad_kernel, types, sizes, chip).asm["ptx"]
