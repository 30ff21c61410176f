"""How the compiled library is found, chosen from, and done without."""

import logging
import os
import shutil
import subprocess
import sys

import pytest
import torch

from ince.errors import InputError
from ince.ops import backends, cpu, reference
from ince.ops.cpu import library

HAS_LIBRARY = bool(cpu.instruction_sets())


@pytest.fixture
def fresh(monkeypatch):
    """As in a process that has not called an operator yet."""
    monkeypatch.setattr(library, "_STATE", library._State())
    library._library.cache_clear()
    yield
    monkeypatch.undo()
    library._library.cache_clear()
    library._library()


def assert_works_like_the_reference():
    weight = torch.randn(40, 96)
    packed, absmax = torch.ops.ince.quantize_4bit(weight, 64, "nf4", False)
    expected = reference.quantize_4bit(weight, 64, "nf4", False)
    assert torch.equal(packed, expected[0])
    assert torch.equal(absmax, expected[1])
    rest = (64, [40, 96], torch.float32, "nf4")
    expanded = torch.ops.ince.dequantize_4bit(packed, absmax, None, None, *rest)
    assert torch.equal(expanded, reference.dequantize_4bit(packed, absmax, None, None, *rest))
    x = torch.randn(3, 96)
    y = torch.ops.ince.linear_4bit(x, packed, absmax, None, None, None, 64, [40, 96], "nf4")
    torch.testing.assert_close(y, x @ expanded.T)
    back = torch.ops.ince.linear_4bit_input_grad(y, packed, absmax, None, None, 64, [40, 96], "nf4")
    torch.testing.assert_close(back, y @ expanded)


def test_the_status_says_what_runs():
    status = cpu.status()
    assert status.device_type == "cpu"
    if HAS_LIBRARY:
        assert status.backend == "cpu"
        assert status.fallback_reason is None
        count = torch.get_num_threads()
        assert status.detail.startswith(cpu.instruction_sets()[0])
        assert f"{count} thread" in status.detail
    else:
        assert status.backend == "reference"
        assert status.fallback_reason
    assert status in backends.report()


def test_a_missing_library_is_named_once_and_done_without(fresh, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    with caplog.at_level(logging.WARNING, "ince.ops"):
        assert_works_like_the_reference()
        assert_works_like_the_reference()
    assert [record.name for record in caplog.records] == ["ince.ops"]
    assert "compiler" in caplog.text
    assert cpu.instruction_sets() == ()
    assert cpu.use_instruction_set("avx2") is None
    status = cpu.status()
    assert status.backend == "reference"
    assert "compiler" in status.fallback_reason


def test_a_file_that_is_no_library_is_done_without(fresh, monkeypatch, tmp_path, caplog):
    (tmp_path / "libince_cpu.so").write_bytes(b"\x7fELF and then nothing")
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    assert_works_like_the_reference()
    assert cpu.status().backend == "reference"
    assert len(caplog.records) == 1


def test_a_library_of_another_version_is_done_without(fresh, monkeypatch, caplog):
    if not HAS_LIBRARY:
        return
    monkeypatch.setattr(library, "_VERSION", -1)
    assert_works_like_the_reference()
    assert "another version" in cpu.status().fallback_reason
    assert len(caplog.records) == 1


def test_the_reference_can_be_forced():
    with backends.reference_only():
        assert library.active() is None
        assert_works_like_the_reference()


def test_instruction_sets_are_used_one_after_the_other():
    for name in cpu.instruction_sets():
        before = cpu.use_instruction_set(name)
        assert cpu.status().detail.startswith(name)
        assert_works_like_the_reference()
        assert cpu.use_instruction_set(before) == name
    if HAS_LIBRARY:
        assert cpu.instruction_sets()[-1] == "portable"


def run_python(code, **variables):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_environment_forces_an_instruction_set(fresh, monkeypatch):
    for name in ("portable", ""):
        monkeypatch.setenv("INCE_CPU_ISA", name)
        library._library.cache_clear()
        assert_works_like_the_reference()
        if HAS_LIBRARY:
            assert cpu.status().detail.startswith(name or cpu.instruction_sets()[0])


def test_an_unknown_instruction_set_is_refused(fresh, monkeypatch):
    if not HAS_LIBRARY:
        return
    with pytest.raises(InputError, match="no such instruction set") as error:
        cpu.use_instruction_set("portabel")
    assert "portable" in str(error.value)
    monkeypatch.setenv("INCE_CPU_ISA", "avx9000")
    library._library.cache_clear()
    with pytest.raises(InputError, match="INCE_CPU_ISA"):
        assert_works_like_the_reference()


def test_the_environment_names_another_library(fresh, monkeypatch, tmp_path):
    if not HAS_LIBRARY:
        return
    copy = tmp_path / "another.so"
    shutil.copy(library._path(), copy)
    monkeypatch.setenv("INCE_CPU_LIBRARY", str(copy))
    assert library._path() == copy
    assert_works_like_the_reference()
    assert cpu.instruction_sets()
    copy.unlink()
    library._library.cache_clear()
    with pytest.raises(InputError, match="INCE_CPU_LIBRARY"):
        assert_works_like_the_reference()


def test_without_openmp_the_calling_thread_does_all(fresh, monkeypatch):
    monkeypatch.setattr(library, "_openmp_libraries", lambda: iter(()))
    assert_works_like_the_reference()
    if HAS_LIBRARY:
        assert "1 thread, as PyTorch's OpenMP was not found" in cpu.status().detail


def test_the_team_is_that_of_pytorch():
    if HAS_LIBRARY and "OpenMP" in torch.__config__.parallel_info():
        assert library._library().runs_in_threads


def test_importing_loads_nothing():
    code = (
        "import ince.ops\n"
        "from ince.ops.cpu import library\n"
        "assert library._library.cache_info().currsize == 0\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr


BF16 = torch.bfloat16


@pytest.mark.parametrize("nested", [False, True], ids=["scales", "double"])
def test_operators_keep_the_rules_of_torch_library(nested):
    weight = torch.randn(24, 128)
    packed, absmax = reference.quantize_4bit(weight, 64, "nf4", False)
    parts = (packed, *(reference.quantize_absmax(absmax) if nested else (absmax, None, None)))
    shape = [24, 128]
    ops = torch.ops.ince
    x = torch.randn(3, 128, requires_grad=True)
    bias = torch.randn(24, requires_grad=True)
    cases = [
        (ops.quantize_4bit, (weight.to(BF16), 64, "nf4", False)),
        (ops.quantize_4bit, (weight, 64, "nf4", True)),
        (ops.dequantize_4bit, (*parts, 64, shape, BF16, "nf4")),
        (ops.linear_4bit, (x, *parts, bias, 64, shape, "nf4")),
        (ops.gemv_4bit, (x.detach()[:1].to(BF16), *parts, None, 64, shape, "nf4")),
        (ops.linear_4bit_input_grad, (torch.randn(3, 24), *parts, 64, shape, "nf4")),
    ]
    for operator, args in cases:
        torch.library.opcheck(operator.default, args)
