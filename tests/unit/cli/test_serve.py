"""Signals before anybody is served; the rest of `ince serve` is shown end to end."""

import contextlib
import io
import signal

import pytest
from rich.console import Console

from ince.cli.serve import _ended_by_signals


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("is_swallowed", [False, True])
def test_a_signal_ends_the_beginning_even_if_a_library_swallows_it(sent, is_swallowed):
    before = signal.getsignal(sent)
    said, reached = io.StringIO(), []
    with _ended_by_signals(Console(file=said)) as beginning:
        beginning.go_on()
        with contextlib.suppress(KeyboardInterrupt) if is_swallowed else contextlib.nullcontext():
            signal.raise_signal(sent)
        reached.append("import")
        beginning.go_on()
        reached.append("server")
    assert reached == (["import"] if is_swallowed else [])
    assert "stopped before anybody was served" in said.getvalue()
    assert signal.getsignal(sent) == before


def test_once_somebody_is_served_an_interrupt_is_the_servers():
    def served():
        with _ended_by_signals(Console(file=io.StringIO())) as beginning:
            beginning.is_over = True
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        served()
