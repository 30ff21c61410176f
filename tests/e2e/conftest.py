"""Benchmarks as programs, run with ``--quick``, and a browser without a window."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


@pytest.fixture(scope="session")
def figures_of(tmp_path_factory):
    """A function: what ``benchmarks/PROGRAM.py --quick`` writes, and what it prints."""

    def run(program, *options, timeout):
        path = tmp_path_factory.mktemp("figures") / "figures.json"
        command = [sys.executable, f"benchmarks/{program}.py", "--quick", *options]
        done = subprocess.run(
            [*command, "--json", str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 0, done.stderr
        return json.loads(path.read_text(encoding="utf-8")), done.stdout

    return run


@pytest.fixture(scope="session")
def browser():
    """The command that starts a Chromium, to be followed by its profile and what it shall do."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        pytest.skip("no Chromium is installed")
    return [found, *QUIET]


@pytest.fixture
def page(browser, tmp_path):
    """A page in a Chromium of its own, which remembers what goes wrong on it."""
    chromium = runpy.run_path(str(Path(__file__).with_name("chromium_page.py")))
    opened = chromium["Page"](browser, tmp_path / "profile")
    opened.look()
    yield opened
    opened.close()
