"""What a command shows: results to stdout, everything else to stderr.

Nothing is read as rich's markup here: names and values come from files of other people.
"""

import json
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.text import Text

from ince.errors import ConfigError, InceError, InterruptedRunError
from ince.record import RunRecord

__all__ = [
    "common_options",
    "print_error",
    "print_json",
    "print_run",
    "progress_console",
    "result_console",
]

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


def result_console() -> Console:
    """Where results go. In a pipe there is no width: lines stay whole."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())


def progress_console() -> Console:
    """Where progress and remarks go."""
    return Console(file=sys.stderr, highlight=False, soft_wrap=not sys.stderr.isatty())


def common_options(command: _Decorated) -> _Decorated:
    """``--json`` (as `as_json`) and ``--debug``, which every command has."""
    debug = click.option(
        "--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."
    )
    as_json = click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object, errors included."
    )
    return as_json(debug(command))


def _jsonable(value: object) -> object:
    """`value` with what JSON cannot say made into what it can: NaN and infinity into null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if value is None or isinstance(value, (str, int, bool)):
        return value
    return str(value)


def print_json(value: Mapping[str, object]) -> None:
    """Print one JSON object to stdout, on one line."""
    text = json.dumps(_jsonable(value), ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        text = json.dumps(_jsonable(value), allow_nan=False)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_run(record: RunRecord) -> None:
    """Print a finished run to stdout: how it went, before and after, and where the rest is."""
    from ince.report.terminal import before_after_table, run_summary

    out = result_console()
    out.print(run_summary(record))
    evaluation = record.get("evaluation")
    if evaluation and evaluation.get("metrics"):
        out.print()
        out.print(before_after_table(evaluation))
    out.print()
    for label, name in (("adapter", "adapter"), ("model", "model"), ("report", "report.html")):
        path = record.path.parent / name
        if path.exists():
            out.print(f"{label:<10} {path}", markup=False)


def _error_text(error: InceError) -> Text:
    stopped = isinstance(error, InterruptedRunError)
    text = Text()
    if not stopped:
        text.append("error: ", style="bold red")
    text.append(error.what, style="bold")
    for label, detail in error.details():
        text.append(f"\n  {label + ':':<10}", style="dim")
        text.append(detail)
    if isinstance(error, ConfigError):
        for problem in error.problems:
            text.append("\n  - ")
            text.append(problem.key, style="bold")
            text.append(str(problem).removeprefix(problem.key))
    return text


def print_error(
    error: InceError,
    *,
    as_json: bool = False,
    debug: bool = False,
    cause: BaseException | None = None,
) -> None:
    """The one printer of errors: for people to stderr, with ``--json`` an object to stdout.

    Args:
        error: what to show.
        as_json: as ``{"error": {...}}``.
        debug: show the traceback of `cause` (or of `error`) first.
    """
    if debug:
        shown = cause if cause is not None else error
        sys.stderr.write("".join(traceback.format_exception(shown)))
    if as_json:
        print_json({"error": error.to_dict()})
    else:
        # Lines are not folded: an error is searched for, and copied.
        progress_console().print(_error_text(error), soft_wrap=True)
