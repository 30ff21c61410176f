"""The processor: its name, its cores, and the instruction sets that kernels choose between.

Linux tells these in ``/proc/cpuinfo``, macOS through sysctl. They are what the system lets a
program use: a set that the hardware has and the system does not turn on is not listed.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ince.environment.unknown import Unknown, ask
from ince.record import hardware

__all__ = ["Processor", "read_processor", "sysctl"]

# What a set is called by Linux and macOS: all the words of one of the groups.
_X86_SETS: dict[str, tuple[frozenset[str], ...]] = {
    "AVX2": (frozenset({"avx2", "fma"}), frozenset({"avx2_0", "fma"})),
    "AVX-512": (frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"}),),
    "AVX512-BF16": (frozenset({"avx512_bf16"}),),
    "AMX": (frozenset({"amx_tile", "amx_bf16"}),),
}
_ARM_SETS: dict[str, tuple[frozenset[str], ...]] = {
    "NEON": (frozenset({"asimd"}), frozenset({"neon"}), frozenset({"advsimd"})),
    "BF16": (frozenset({"bf16"}), frozenset({"feat_bf16"})),
    "SVE": (frozenset({"sve"}),),
}
_SETS = {
    "x86_64": _X86_SETS,
    "amd64": _X86_SETS,
    "aarch64": _ARM_SETS,
    "arm64": _ARM_SETS,
}

_CPUINFO = Path("/proc/cpuinfo")
_SYSCTL = "/usr/sbin/sysctl"
_SYSCTL_SECONDS = 5


@dataclass(frozen=True)
class Processor:
    """The processor that this process runs on.

    Attributes:
        name: as it calls itself.
        architecture: ``x86_64``, ``arm64``, ….
        num_cores: that this process may use.
        num_cores_of_machine: that there are.
        instruction_sets: set → whether it can be used; those of the architecture that matter.
    """

    name: str | Unknown
    architecture: str
    num_cores: int | Unknown
    num_cores_of_machine: int | Unknown
    instruction_sets: Mapping[str, bool] | Unknown


def read_processor() -> Processor:
    """Find out what the processor is."""
    return Processor(
        name=ask(_name),
        architecture=platform.machine(),
        num_cores=ask(_num_cores),
        num_cores_of_machine=ask(_num_cores_of_machine),
        instruction_sets=ask(_instruction_sets),
    )


def sysctl(*names: str) -> dict[str, str]:
    """Values by name, as macOS and the BSDs tell them; a prefix gives all under it.

    Raises:
        OSError: there is no such program.
        subprocess.TimeoutExpired: it does not answer.
    """
    done = subprocess.run(
        [_SYSCTL, *names],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_SYSCTL_SECONDS,
        check=False,  # an unknown name among known ones is an exit code too
    )
    pairs = (line.partition(":") for line in done.stdout.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def _name() -> str | Unknown:
    if sys.platform == "darwin":
        brand = sysctl("machdep.cpu.brand_string").get("machdep.cpu.brand_string")
        if brand:
            return brand
    name = hardware()["processor"]
    return str(name) if name else Unknown("the system does not tell")


def _num_cores() -> int | Unknown:
    count = hardware()["num_cores"]
    return count if isinstance(count, int) else Unknown("the system does not tell")


def _num_cores_of_machine() -> int | Unknown:
    return os.cpu_count() or Unknown("the system does not tell")


def _instruction_sets() -> Mapping[str, bool] | Unknown:
    sets = _SETS.get(platform.machine().lower())
    if sets is None:
        return Unknown(f"no kernel here is made for {platform.machine() or 'this architecture'}")
    words = _sysctl_words() if sys.platform == "darwin" else _cpuinfo_words()
    if not words:
        return Unknown("the system does not tell")
    return {name: any(group <= words for group in groups) for name, groups in sets.items()}


def _cpuinfo_words() -> set[str]:
    # Cores of one machine may differ; what all of them can is what counts.
    cores = [
        set(value.lower().split())
        for label, _, value in (
            line.partition(":") for line in _CPUINFO.read_text(encoding="utf-8").splitlines()
        )
        if label.strip().lower() in ("flags", "features")
    ]
    return set[str].intersection(*cores) if cores else set()


def _sysctl_words() -> set[str]:
    values = sysctl("hw.optional")
    return {name.rpartition(".")[2].lower() for name, value in values.items() if value == "1"}
