"""Which code an operator runs on each kind of device, and why not a faster one.

A backend that cannot run (no compiler when ince was installed, no Triton) leaves its work to the
reference. That is said once in the log, and by `report`.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from ince.errors import InputError

__all__ = ["BackendReport", "is_reference_only", "reference_only", "report", "reporter"]

_VARIABLE = "INCE_BACKEND"
_REFERENCE = "reference"

_reference_only: ContextVar[bool] = ContextVar("reference_only", default=False)


@dataclass(frozen=True)
class BackendReport:
    """What runs on one kind of device."""

    device_type: str
    """As in `torch.device`."""
    backend: str
    """``cpu``, ``triton`` or ``reference``."""
    detail: str
    """Instruction set, threads, version: what a person asks next."""
    fallback_reason: str | None = None
    """Why it is the reference, where a faster backend exists."""


_REPORTERS: list[Callable[[], BackendReport]] = []


@contextmanager
def reference_only() -> Iterator[None]:
    """Inside, in this thread, every operator runs on the reference."""
    token = _reference_only.set(True)
    try:
        yield
    finally:
        _reference_only.reset(token)


def is_reference_only() -> bool:
    """Whether fast backends must leave their work to the reference.

    True inside `reference_only`, and where the environment has ``INCE_BACKEND=reference``.

    Raises:
        InputError: the variable has another value.
    """
    if _reference_only.get():
        return True
    chosen = os.environ.get(_VARIABLE)
    if not chosen:
        return False
    if chosen != _REFERENCE:
        raise InputError(
            "no such backend can be forced",
            where=_VARIABLE,
            got=chosen,
            expected=_REFERENCE,
            do=f"unset {_VARIABLE}: the fastest backend is used by itself",
        )
    return True


def reporter(status: Callable[[], BackendReport]) -> Callable[[], BackendReport]:
    """Register what a backend says of itself, in the order of `report`."""
    _REPORTERS.append(status)
    return status


def report() -> list[BackendReport]:
    """What runs where, for the kinds of device that ince has a backend for."""
    found = [status() for status in _REPORTERS]
    if not is_reference_only():
        return found
    reason = "the reference is forced"
    return [BackendReport(each.device_type, _REFERENCE, "plain PyTorch", reason) for each in found]
