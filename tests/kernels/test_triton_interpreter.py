"""The GPU kernels without a GPU: Triton's interpreter runs them on the CPU.

It must be chosen before Triton is imported, which other tests and their oracles do for real; so
its checks, in `interpreted/`, run in a process of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = sorted(Path(__file__).with_name("interpreted").glob("check_*.py"))

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is made for Linux alone")


def test_there_are_checks():
    assert CHECKS


@pytest.mark.timeout(600)
@pytest.mark.parametrize("checks", CHECKS, ids=lambda path: path.stem)
def test_kernels_equal_the_reference_in_the_interpreter(tmp_path, checks):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", checks]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
