import platform
import subprocess
import sys

import pytest

from ince.environment import Unknown
from ince.environment import processor as module
from ince.environment.processor import read_processor, sysctl

# Two cores of different kinds: the second lacks bfloat16 products.
X86 = """\
processor\t: 0
flags\t\t: fpu fma avx2 avx512f avx512bw avx512dq avx512vl avx512_bf16 amx_tile
processor\t: 1
flags\t\t: fpu fma avx2 avx512f avx512bw avx512dq avx512vl amx_tile
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\n"

MAC_ARM = """\
hw.optional.neon: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_SME: 0
"""
MAC_X86 = "hw.optional.fma: 1\nhw.optional.avx2_0: 1\nhw.optional.avx512f: 0\n"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    def pretend(architecture, cpuinfo):
        path = tmp_path / "cpuinfo"
        path.write_text(cpuinfo)
        monkeypatch.setattr(platform, "machine", lambda: architecture)
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(module, "_CPUINFO", path)

    return pretend


@pytest.fixture
def mac(monkeypatch):
    def pretend(architecture, told):
        def run(command, **_options):
            out = "machdep.cpu.brand_string: Apple M9\n" if "machdep" in command[1] else told
            return subprocess.CompletedProcess(command, 0, out, "")

        monkeypatch.setattr(platform, "machine", lambda: architecture)
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setattr(subprocess, "run", run)

    return pretend


def test_what_all_cores_can_counts(machine):
    machine("x86_64", X86)
    assert read_processor().instruction_sets == {
        "AVX2": True,
        "AVX-512": True,
        "AVX512-BF16": False,
        "AMX": False,
    }


def test_arm(machine):
    machine("aarch64", ARM)
    assert read_processor().instruction_sets == {"NEON": True, "BF16": True, "SVE": False}


@pytest.mark.parametrize("architecture, cpuinfo", [("riscv64", "isa: rv64"), ("x86_64", "")])
def test_what_the_system_does_not_tell_is_unknown(machine, architecture, cpuinfo):
    machine(architecture, cpuinfo)
    assert isinstance(read_processor().instruction_sets, Unknown)


def test_a_system_without_proc(machine, monkeypatch, tmp_path):
    machine("x86_64", X86)
    monkeypatch.setattr(module, "_CPUINFO", tmp_path / "none")
    found = read_processor()
    assert "FileNotFoundError" in found.instruction_sets.reason
    assert found.num_cores >= 1


def test_a_mac(mac):
    mac("arm64", MAC_ARM)
    found = read_processor()
    assert found.name == "Apple M9"
    assert found.instruction_sets == {"NEON": True, "BF16": True, "SVE": False}


def test_an_older_mac(mac):
    mac("x86_64", MAC_X86)
    sets = read_processor().instruction_sets
    assert [name for name, there in sets.items() if there] == ["AVX2"]


def test_a_mac_whose_sysctl_does_not_answer(mac, monkeypatch):
    mac("arm64", MAC_ARM)

    def late(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", late)
    found = read_processor()
    assert "TimeoutExpired" in found.name.reason
    assert "TimeoutExpired" in found.instruction_sets.reason


def test_lines_that_are_none(mac):
    mac("arm64", "second level name unknown\n\nhw.optional.neon: 1\n")
    assert sysctl("hw.optional") == {"hw.optional.neon": "1"}
