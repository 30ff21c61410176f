"""Which class a model with adapters is of: that of its task."""

from typing import ClassVar, Protocol, TypeVar

from torch import nn

__all__ = ["OfTask", "class_for_task"]


class OfTask(Protocol):
    """A class of models for one task."""

    task: ClassVar[str | None]
    """As configs name it."""
    base_endings: ClassVar[tuple[str, ...]]
    """How transformers' classes for it end: they say it, where the config does not."""


_Class = TypeVar("_Class", bound=OfTask)


def class_for_task(general: type[_Class], task: str | None, model: nn.Module) -> type[_Class]:
    """The subclass of `general` for a task, or for what the class of the base does; or itself."""
    kind = type(model).__name__
    for special in general.__subclasses__():
        if task is not None and special.task == task:
            return special
        if task is None and kind.endswith(special.base_endings):
            return special
    return general
