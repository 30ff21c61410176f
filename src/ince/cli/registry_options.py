"""Options that the commands of ``ince registry`` share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = ["registry_option", "tenant_option"]

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


def registry_option(command: _Decorated) -> _Decorated:
    """``--registry DIR``, as `folder`."""
    option = click.option(
        "--registry",
        "folder",
        metavar="DIR",
        type=click.Path(path_type=Path),
        default="registry",
        show_default=True,
        envvar="INCE_REGISTRY",
        show_envvar=True,
        help="The registry's folder.",
    )
    return option(command)


def tenant_option(text: str) -> Callable[[_Decorated], _Decorated]:
    """``--tenant NAME``; without it what is shared."""

    def decorate(command: _Decorated) -> _Decorated:
        return click.option("--tenant", default="", metavar="NAME", help=text)(command)

    return decorate
