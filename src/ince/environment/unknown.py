"""A fact that cannot be had, with the reason; asking for one never fails."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ince.errors import InceError

__all__ = ["Unknown", "ask"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Unknown:
    """In place of a value: why there is none."""

    reason: str

    def __str__(self) -> str:
        return f"unknown: {self.reason}"


def ask(question: Callable[[], _T | Unknown]) -> _T | Unknown:
    """The answer of `question`; whatever it raises is a reason, and what it warns of is dropped.

    Drivers, half-installed packages and systems without ``/proc`` fail in every way there is.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return question()
    except InceError as error:
        return Unknown(
            "; ".join([error.what, *(f"{label}: {text}" for label, text in error.details())])
        )
    except Exception as error:
        said = " ".join(str(error).split())
        kind = type(error).__name__
        return Unknown(f"{kind}: {said}" if said else kind)
