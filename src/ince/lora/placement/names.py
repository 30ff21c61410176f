"""Names of adapters: what one may be called, and whether the model has it."""

import re
from collections.abc import Collection

from torch import nn

from ince.errors import AdapterError, did_you_mean

__all__ = ["check_adapter_name", "check_known"]

_ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
# Where adapters lie under their names, which must not be those of methods.
_TABLES = (nn.ModuleDict(), nn.ParameterDict())


def check_adapter_name(adapter_name: str) -> None:
    """Refuse names that cannot be a folder and a module key.

    Raises:
        AdapterError: empty or longer than 128, with other characters than letters, digits,
            ``_`` and ``-``, or the name of a method of torch's module dictionaries.
    """
    if (
        not isinstance(adapter_name, str)
        or _ADAPTER_NAME.fullmatch(adapter_name) is None
        or any(hasattr(table, adapter_name) for table in _TABLES)
    ):
        raise AdapterError(
            "not a usable adapter name",
            got=adapter_name,
            expected="ASCII letters, digits, _ and -, beginning with a letter or digit; and not "
            "the name of something that torch's modules have, such as 'train'",
        )


def check_known(adapter_name: str, known: Collection[str]) -> None:
    """Refuse a name that is not in `known`, those of a model's adapters.

    Raises:
        AdapterError: it is not; it says which there are, and which one may be meant.
    """
    if adapter_name not in known:
        raise AdapterError(
            f"the model has no adapter {adapter_name!r}",
            expected=", ".join(known) or "no adapter is left",
            do=did_you_mean(adapter_name, known),
        )
