"""How an operator is declared once, and how backends register beside the declaration.

A thin layer over `torch.library`: it makes sure that every backend, and the shape inference of
``torch.compile`` and of the meta device, runs behind the same checks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

__all__ = ["Autograd", "Operator"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _mark_frozen(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
    # What is packed is frozen: results never ask for a gradient, whatever they came from.
    ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))


def _no_gradient(ctx: Any, *grads: Any) -> None:  # noqa: ARG001  never reached: see above
    return None


@dataclass(frozen=True)
class Autograd:
    """How a gradient goes back through an operator, as `torch.library.register_autograd` has it."""

    setup_context: Callable[..., None]
    backward: Callable[..., Any]


_FROZEN = Autograd(_mark_frozen, _no_gradient)


@dataclass(frozen=True)
class Operator:
    """One operator ``ince::name``.

    Args:
        name: under ``torch.ops.ince``.
        schema: arguments and results, in the language of `torch.library`.
        check: called with the arguments before any backend; raises `QuantError`. It looks at
            dtypes and shapes alone, so that it holds for tensors without data too.
        autograd: how gradients pass; without it results never ask for one.
    """

    name: str
    schema: str
    check: Callable[..., None]
    autograd: Autograd = _FROZEN

    def __post_init__(self) -> None:
        torch.library.define(self.qualified_name, self.schema)
        torch.library.register_autograd(
            self.qualified_name, self.autograd.backward, setup_context=self.autograd.setup_context
        )

    @property
    def qualified_name(self) -> str:
        """Name with its namespace."""
        return f"ince::{self.name}"

    def backend(self, device_type: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
        """Register the decorated function for ``"cpu"``, ``"cuda"``, …; ``"default"`` is any.

        A backend for a device type takes precedence over the default one.
        """

        def register(kernel: Callable[_P, _R]) -> Callable[_P, _R]:
            torch.library.impl(self.qualified_name, device_type, self._checked(kernel))
            return kernel

        return register

    def fake(self, shapes: Callable[_P, _R]) -> Callable[_P, _R]:
        """Register the decorated function as what makes results without data."""
        torch.library.register_fake(self.qualified_name, self._checked(shapes))
        return shapes

    def _checked(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        check = self.check

        @wraps(function)
        def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            check(*args, **kwargs)
            return function(*args, **kwargs)

        return checked
