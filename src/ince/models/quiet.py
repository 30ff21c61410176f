"""Keep transformers' bars and notices away from the user's terminal, for a moment.

transformers reports through its own logger, tqdm and ``warnings``. What matters in
there ince checks itself and says as one of its errors; the rest would land in the
middle of our progress display. All settings are put back on leaving.
"""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

__all__ = ["quiet_transformers", "without_line"]


@contextlib.contextmanager
def quiet_transformers(*, bars: bool = False) -> Iterator[None]:
    """Silence transformers inside; `bars` leaves progress bars as they are."""
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not bars:
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars and not bars:
            logging.enable_progress_bar()


class _Without:
    """A text stream that drops what a tqdm bar with a known description writes."""

    def __init__(self, stream: Any, marker: str) -> None:
        self._stream = stream
        self._marker = marker
        self._dropped = False

    def write(self, text: str) -> int:
        # The bar ends with a line break of its own, or wipes itself with blanks.
        if self._marker in text or (self._dropped and not text.strip()):
            self._dropped = True
            return len(text)
        self._dropped = False
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def without_line(marker: str) -> Iterator[None]:
    """Drop what is written to stderr with `marker` in it; all else passes.

    For the one bar that no switch of transformers turns off.
    """
    filtered: Any = _Without(sys.stderr, marker)
    with contextlib.redirect_stderr(filtered):
        yield
