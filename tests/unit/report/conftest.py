import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def made_up():
    """The functions of made_up_run.py."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("made_up_run.py"))))


@pytest.fixture
def run_folder(tmp_path, made_up):
    """Makes a run folder; arguments are those of `write_run`."""

    def build(**changes):
        return made_up.write_run(tmp_path / "turkish", **changes)

    return build
