"""How an operator is declared once, and how backends register beside the declaration.

A thin layer over `torch.library`: it makes sure that every backend, and the shape inference of
``torch.compile`` and of the meta device, runs behind the same checks. An operator that writes
into its arguments (its schema says which) has no gradient, and refuses to be asked for one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ince.errors import InputError

__all__ = ["NO_SECOND_GRADIENT", "Autograd", "Operator"]

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


def _keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
    return None


def _refuse_gradient(ctx: Any, *grads: Any) -> None:  # noqa: ARG001
    raise InputError(
        "a gradient has no gradient of its own here",
        expected="first derivatives",
        do="leave create_graph=True out",
    )


def _nothing(*args: Any) -> None:
    """Results without data of an operator that only writes into its arguments."""


NO_SECOND_GRADIENT = Autograd(_keep_nothing, _refuse_gradient)
"""For operators that are the gradient of another one."""


@dataclass(frozen=True)
class Operator:
    """One operator ``ince::name``.

    Args:
        name: under ``torch.ops.ince``.
        schema: arguments and results, in the language of `torch.library`.
        check: called with the arguments before any backend; raises `QuantError`. It looks at
            dtypes and shapes alone, so that it holds for tensors without data too.
        autograd: how gradients pass; without it results never ask for one. Nothing for an
            operator that writes into its arguments.
    """

    name: str
    schema: str
    check: Callable[..., None]
    autograd: Autograd = _FROZEN
    written: tuple[int, ...] = field(default=(), init=False)
    """Positions of the arguments that it writes into."""

    def __post_init__(self) -> None:
        torch.library.define(self.qualified_name, self.schema)
        schema = getattr(torch.ops.ince, self.name).default._schema
        written = tuple(
            position
            for position, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        )
        object.__setattr__(self, "written", written)
        if not written:
            torch.library.register_autograd(
                self.qualified_name,
                self.autograd.backward,
                setup_context=self.autograd.setup_context,
            )
        if not schema.returns:
            self.fake(_nothing)

    @property
    def qualified_name(self) -> str:
        """Name with its namespace."""
        return f"ince::{self.name}"

    def backend(self, device_type: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
        """Register the decorated function for ``"cpu"``, ``"cuda"``, …; ``"default"`` is any.

        A backend for a device type takes precedence over the default one.
        """

        def register(kernel: Callable[_P, _R]) -> Callable[_P, _R]:
            checked = self._checked(self._writing(kernel) if self.written else kernel)
            torch.library.impl(self.qualified_name, device_type, checked)
            return kernel

        return register

    def fake(self, shapes: Callable[_P, _R]) -> Callable[_P, _R]:
        """Register the decorated function as what makes results without data.

        An operator without results has none to make, and needs none.
        """
        torch.library.register_fake(self.qualified_name, self._checked(shapes))
        return shapes

    def _checked(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        check = self.check

        @wraps(function)
        def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            check(*args, **kwargs)
            return function(*args, **kwargs)

        return checked

    def _writing(self, kernel: Callable[_P, _R]) -> Callable[_P, _R]:
        """`kernel`, after which autograd knows that its arguments were written into.

        So a backward that kept one of them fails, instead of using other numbers.
        """

        @wraps(kernel)
        def writing(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            tensors = [args[position] for position in self.written]
            if torch.is_grad_enabled():
                self._refuse_recorded(tensors)
            result = kernel(*args, **kwargs)
            for tensor in tensors:
                if isinstance(tensor, Tensor) and not tensor.is_inference():
                    increment_version(tensor)
            return result

        return writing

    def _refuse_recorded(self, tensors: list[Any]) -> None:
        for tensor in tensors:
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                raise InputError(
                    "an operator that writes into its arguments has no gradient",
                    where=self.qualified_name,
                    got="a tensor that asks for one",
                    do="call it under torch.no_grad(), or in a backward",
                )
