"""All mistakes of some options at once, instead of the first one: for configs made by pydantic."""

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ModelWrapValidatorHandler, ValidationError

from ince.errors import ConfigError, Problem, did_you_mean

__all__ = ["name_all_mistakes"]

_Config = TypeVar("_Config", bound=BaseModel)


def name_all_mistakes(
    cls: type[_Config],
    data: object,
    handler: ModelWrapValidatorHandler[_Config],
    *,
    what: str,
    whole: str,
) -> _Config:
    """What `handler` makes of options, for a wrap validator of a config without nested parts.

    Args:
        cls: the config.
        data, handler: as the validator got them.
        what: says that there are mistakes.
        whole: what a mistake is of that is no single option's.

    Raises:
        ConfigError: options that are unknown or wrong; all of them.
    """
    if not isinstance(data, Mapping):
        return handler(data)
    values = dict(cast("Mapping[str, object]", data))
    problems: list[Problem] = []
    for name in sorted(set(values) - set(cls.model_fields), key=str):
        suggestion = did_you_mean(name, cls.model_fields)
        problems.append(Problem(str(name), "no such option", suggestion))
        del values[name]
    try:
        config = handler(values)
    except ValidationError as error:
        problems += [_problem(detail, whole) for detail in error.errors()]
    else:
        if not problems:
            return config
    raise ConfigError(what, problems=problems)


def _problem(detail: Mapping[str, Any], whole: str) -> Problem:
    location = ".".join(map(str, detail["loc"]))
    what = str(detail["msg"]).removeprefix("Value error, ")
    got = f", got {detail['input']!r}" if location else ""
    return Problem(location or whole, f"{what[:1].lower()}{what[1:]}{got}")
