"""What figures were taken on: hardware, threads, versions, command. No names of machines."""

import datetime as dt
import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path


def machine():
    """The processor and its memory, as this process sees them."""
    import torch

    model = _of_cpuinfo("model name") or platform.processor() or platform.machine()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": model,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "multiplies_bfloat16": multiplies_bfloat16(),
        "cores": os.cpu_count(),
        "memory_gb": round(pages / 1e9, 1),
        "threads": torch.get_num_threads(),
    }


def _of_cpuinfo(key):
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def multiplies_bfloat16():
    """Whether the processor has instructions for it; without them torch takes tens of times as
    long as in float32, whatever the library."""
    return bool(set(_of_cpuinfo("flags").split()) & {"avx512_bf16", "amx_bf16"})


def product_dtype(asked):
    """The name of the dtype for activations and products; ``auto`` is the machine's faster one."""
    if asked != "auto":
        return asked
    return "bfloat16" if multiplies_bfloat16() else "float32"


def versions(*packages):
    """Of Python and those of `packages` that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def occasion():
    """When, and by which command."""
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
    }


def print_facts(facts):
    """A line for each."""
    for what, values in facts.items():
        shown = values
        if isinstance(values, dict):
            shown = ", ".join(f"{key} {value}" for key, value in values.items())
        print(f"{what}: {shown}")
