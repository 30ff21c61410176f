"""YAML as a recipe means it: the core schema of YAML 1.2, read strictly, with line numbers.

PyYAML follows YAML 1.1, where ``2e-4`` is text, ``no`` is false, ``010`` is eight and
``1:30`` is ninety. Here numbers are numbers, only ``true`` and ``false`` are booleans,
a key stands once in its mapping, and anchors, tags and deep nesting are refused, so that
a hostile file cannot grow in memory. It is a reader of descriptions, not of any YAML.
"""

import re
from dataclasses import dataclass

import yaml

from ince.errors import ConfigError

__all__ = ["ParsedText", "dump_yaml", "parse_scalar", "parse_yaml"]

# A recipe is three levels deep; patterns may hold lists.
_MAX_DEPTH = 20

_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
# Order matters: what is an integer is also a float.
_IMPLICIT = (
    ("tag:yaml.org,2002:null", _NULL, ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", _BOOL, list("tTfF")),
    ("tag:yaml.org,2002:int", _INT, list("-+0123456789")),
    ("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789")),
)


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    pass


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    try:
        return int(text, base)
    except ValueError as error:  # Python's own limit on the digits of an integer
        raise yaml.constructor.ConstructorError(
            None, None, f"not a usable number: {error}", node.start_mark
        ) from error


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


# Without those of YAML 1.1; the registering below then fills a table of this class's own.
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _IMPLICIT:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    # The writer quotes what either version of YAML would read as something else than text.
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


@dataclass(frozen=True)
class ParsedText:
    """A mapping as read, and the line of each dotted key, counted from 1."""

    values: dict[str, object]
    lines: dict[str, int]


def _refuse_what_no_recipe_needs(text: str, where: str) -> None:
    # Events come from an iterative parser: nothing is built before this has passed.
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ConfigError(
                "a recipe cannot use YAML anchors or aliases",
                where=f"{where}, line {event.start_mark.line + 1}",
                do="write the value out where it is needed",
            )
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ConfigError(
                f"nested more than {_MAX_DEPTH} levels deep",
                where=f"{where}, line {event.start_mark.line + 1}",
            )


def _walk(node: yaml.Node, prefix: str, lines: dict[str, int], repeated: list[str]) -> None:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(item, f"{prefix}.{index}", lines, repeated)
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(
                None, None, "a key must be plain text", key_node.start_mark
            )
        key = f"{prefix}.{key_node.value}" if prefix else str(key_node.value)
        line = key_node.start_mark.line + 1
        if key in lines:
            repeated.append(f"{key} in lines {lines[key]} and {line}")
        lines[key] = line
        _walk(value_node, key, lines, repeated)


def parse_yaml(text: str, *, where: str) -> ParsedText:
    """Read one YAML mapping.

    Args:
        text: the document.
        where: its name, for messages.

    Raises:
        ConfigError: not one YAML mapping, a key given twice, or an anchor, tag or depth
            that no recipe needs.
    """
    lines: dict[str, int] = {}
    repeated: list[str] = []
    try:
        _refuse_what_no_recipe_needs(text, where)
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return ParsedText({}, {})
        _walk(node, "", lines, repeated)
        value: object = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(
            "not readable as YAML",
            where=where if mark is None else f"{where}, line {mark.line + 1}",
            got=error.problem or error.context,
            do="mind the indentation, and a space after each colon",
        ) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ConfigError("not readable as YAML", where=where, got=str(error)) from error
    if repeated:
        raise ConfigError(
            "a key is given more than once", where=where, got="; ".join(repeated), do="keep one"
        )
    if not isinstance(value, dict):
        raise ConfigError(
            "not a recipe: no keys with values",
            where=where,
            got=type(value).__name__,
            expected="sections such as 'model:' and 'data:'",
        )
    return ParsedText({str(key): item for key, item in value.items()}, lines)


def parse_scalar(text: str, *, where: str) -> object:
    """Read the value of a ``key=value`` override.

    What opens with a bracket, a brace or a quote is YAML; anything else is a number, true,
    false, null (an empty value too) or else text as it stands, colons and all.

    Raises:
        ConfigError: brackets or quotes that do not close.
    """
    text = text.strip()
    if text[:1] in ("[", "{", '"', "'"):
        values = parse_yaml(f"value: {text}", where=where).values
        if set(values) != {"value"}:
            raise ConfigError("more than one value", where=where, got=text)
        return values["value"]
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    mark = yaml.Mark(where, 0, 0, 0, text, 0)
    try:
        value: object = loader.construct_object(yaml.ScalarNode(tag, text, mark, mark))
    except yaml.MarkedYAMLError as error:
        raise ConfigError("not a usable value", where=where, got=error.problem) from error
    return value


def dump_yaml(values: dict[str, object]) -> str:
    """Write a mapping so that `parse_yaml` reads it back equal."""
    text: str = yaml.dump(
        values,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=88,
    )
    return text
