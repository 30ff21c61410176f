"""transformers is quiet inside, and as it was outside."""

import contextlib
import sys
import warnings

import pytest
from tqdm import tqdm
from transformers.utils import logging

from ince.models.quiet import quiet_transformers, without_line


def test_settings_are_put_back() -> None:
    logging.enable_progress_bar()
    verbosity = logging.get_verbosity()
    with contextlib.suppress(RuntimeError), quiet_transformers():
        assert not logging.is_progress_bar_enabled()
        assert logging.get_verbosity() == logging.ERROR
        warnings.warn("silenced", stacklevel=1)
        raise RuntimeError
    assert logging.is_progress_bar_enabled()
    assert logging.get_verbosity() == verbosity


def test_bars_that_were_off_stay_off() -> None:
    logging.disable_progress_bar()
    try:
        with quiet_transformers():
            pass
        assert not logging.is_progress_bar_enabled()
    finally:
        logging.enable_progress_bar()


def test_one_bar_is_dropped_and_the_rest_passes(capsys: pytest.CaptureFixture[str]) -> None:
    with without_line("turning pages"):
        sys.stderr.write("before\n")
        for _ in tqdm(range(3), desc="turning pages of a book"):
            pass
        sys.stderr.write("after\n")
    assert capsys.readouterr().err == "before\nafter\n"
