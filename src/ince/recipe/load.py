"""Read a recipe: YAML or TOML, overrides from a command line, and every mistake at once.

A recipe comes from people and from the net, so the file is bounded in size and depth and
holds data only. Nothing is defaulted in silence: an unknown key is a mistake.
"""

import copy
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from ince.errors import ConfigError, Problem, did_you_mean
from ince.recipe.mistakes import find_mistakes
from ince.recipe.schema import LoraSection, Recipe
from ince.recipe.yaml_text import ParsedText, parse_scalar, parse_yaml

__all__ = ["load_recipe", "parse_recipe"]

# A long recipe has a hundred lines; this is far beyond any, and far below what hurts.
_MAX_BYTES = 256 * 1024

_SUFFIXES = (".yaml", ".yml", ".toml")
_FILES = (("data", "train"), ("data", "eval"), ("evaluate", "english"))
_MODEL_PATH = re.compile(r"^(?:\.{1,2}(?:/|$)|~|/)|\.gguf$", re.IGNORECASE)

_EXAMPLE = (
    "model: {base: smollm2-135m-instruct}, data: {train: data/train.jsonl}, output: runs/first"
)


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise ConfigError("a recipe is a file, and this is a folder", where=path)
    if not path.is_file():
        nearby = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        recipes = [name for name in nearby if name.endswith(_SUFFIXES)]
        suggestion = did_you_mean(path.name, recipes)
        raise ConfigError(
            "no such recipe",
            where=path,
            do=suggestion or f"write one that holds at least {_EXAMPLE}",
        )
    if path.suffix.lower() not in _SUFFIXES:
        raise ConfigError(
            "not a recipe by its name", where=path, expected="a file that ends in .yaml or .toml"
        )
    try:
        num_bytes = path.stat().st_size
        if num_bytes > _MAX_BYTES:
            raise ConfigError(
                "too large for a recipe",
                where=path,
                got=f"{num_bytes} bytes",
                expected=f"at most {_MAX_BYTES}",
                do="a recipe names the data; it does not hold them",
            )
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            "the recipe is not UTF-8 text",
            where=path,
            got=f"byte {error.object[error.start]:#04x} at offset {error.start}",
            do="save it as UTF-8",
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot read the recipe: {error.strerror}", where=path) from error


def _parse_toml(text: str, *, where: str) -> ParsedText:
    try:
        return ParsedText(tomllib.loads(text), {})
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        raise ConfigError(
            "not readable as TOML", where=where, got=str(error) or type(error).__name__
        ) from error


def _section(values: dict[str, object], name: str) -> dict[str, object] | None:
    section = values.get(name)
    return cast("dict[str, object]", section) if isinstance(section, dict) else None


def _anchored(text: str, folder: Path) -> str:
    path = folder / Path(text).expanduser()
    return str(path.parent.resolve() / path.name)


def _anchor_paths(values: dict[str, object], folder: Path) -> None:
    """Make the paths in `values` absolute, as seen from `folder`."""
    for section_name, key in _FILES:
        section = _section(values, section_name)
        if section is not None and isinstance(section.get(key), str) and section[key]:
            section[key] = _anchored(str(section[key]), folder)
    model = _section(values, "model")
    base = None if model is None else model.get("base")
    # A bare or owner/name reference is not a path; a path says so by how it is written.
    if model is not None and isinstance(base, str) and _MODEL_PATH.search(base):
        model["base"] = _anchored(base, folder)


def _apply_overrides(
    values: dict[str, object], overrides: Sequence[str], problems: list[Problem]
) -> None:
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        parts = key.split(".")
        if not equals or not all(parts):
            problems.append(
                Problem(override, "not an override", "write section.key=value, as in train.lr=1e-4")
            )
            continue
        try:
            value = parse_scalar(text, where=override)
        except ConfigError as error:
            problems.append(Problem(key, f"value {text!r}: {error.got or error.what}"))
            continue
        inner: dict[str, object] = {}
        outer = inner
        for part in parts[:-1]:
            step: dict[str, object] = {}
            outer[part] = step
            outer = step
        outer[parts[-1]] = value
        _anchor_paths(inner, Path.cwd())
        _merge(values, inner)


def _merge(values: dict[str, object], changes: dict[str, object]) -> None:
    for name, change in changes.items():
        present = values.get(name)
        if isinstance(change, dict) and isinstance(present, dict):
            _merge(cast("dict[str, object]", present), cast("dict[str, object]", change))
        else:
            values[name] = change


def _missing_files(recipe: Recipe) -> list[Problem]:
    problems: list[Problem] = []
    named = (
        ("data.train", recipe.data.train),
        ("data.eval", recipe.data.eval),
        ("evaluate.english", recipe.evaluate.english),
    )
    for key, text in named:
        if text is None or Path(text).is_file():
            continue
        path = Path(text)
        if path.is_dir():
            problems.append(Problem(key, f"{path} is a folder, expected a file"))
            continue
        nearby = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        problems.append(Problem(key, f"no such file: {path}", did_you_mean(path.name, nearby)))
    return problems


def _misfits(recipe: Recipe) -> list[Problem]:
    """What each value allows and the parts together do not: the rooms' own checks."""
    names = {
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
        "init_lora_weights": "init",
    }
    problems: list[Problem] = []
    try:
        recipe.model.to_nf4_config()
    except ConfigError as error:
        problems += [Problem(f"model.{p.key}", p.what, p.suggestion) for p in error.problems]
    try:
        recipe.lora.to_lora_config()
    except ConfigError as error:
        for problem in error.problems:
            key = ".".join(["lora", names.get(problem.key, problem.key)]).rstrip(".")
            problems.append(Problem(key, problem.what, problem.suggestion))
    if recipe.train.method == "full":
        problems += _not_of_full(recipe)
    if recipe.data.eval is None:
        given = {"early_stopping": recipe.train.early_stopping, "keep_best": recipe.train.keep_best}
        problems += [
            Problem(f"train.{key}", "needs rows to measure on, data.eval")
            for key, value in given.items()
            if value
        ]
    return problems


def _not_of_full(recipe: Recipe) -> list[Problem]:
    """What belongs to an adapter or to a frozen base, where every weight learns."""
    problems: list[Problem] = []
    if recipe.model.quantize is not None:
        problems.append(
            Problem(
                "model.quantize",
                "packed weights cannot learn, and train.method is full",
                "leave it out or write none, or train an adapter: method: lora",
            )
        )
    if recipe.model.compute_dtype == "float16":
        problems.append(
            Problem(
                "model.compute_dtype",
                "small gradients are zero in float16",
                "write bfloat16 or float32",
            )
        )
    if recipe.lora != LoraSection():
        problems.append(
            Problem(
                "lora",
                "there is no adapter where train.method is full",
                "leave the section out (on the command line: lora=null)",
            )
        )
    if recipe.train.loraplus_lr_ratio is not None:
        problems.append(
            Problem(
                "train.loraplus_lr_ratio",
                "is of adapters, and train.method is full",
                "leave it out; train.lr_multipliers has rates by name",
            )
        )
    return problems


def parse_recipe(
    values: Mapping[str, object],
    *,
    overrides: Sequence[str] = (),
    folder: Path | None = None,
    lines: Mapping[str, int] | None = None,
    where: str = "recipe",
) -> Recipe:
    """Build a recipe from plain values.

    Args:
        values: sections with their keys, as in a file.
        overrides: ``section.key=value``, the value as in YAML; the last one wins.
        folder: what relative paths in `values` are relative to. None: the working directory.
        lines: line of each dotted key, for messages.
        where: name of the source, for messages.

    Raises:
        ConfigError: every mistake of every section, in `problems`.
    """
    resolved: dict[str, object] = copy.deepcopy(dict(values))
    _anchor_paths(resolved, folder if folder is not None else Path.cwd())
    problems: list[Problem] = []
    _apply_overrides(resolved, overrides, problems)
    recipe, mistakes = find_mistakes(Recipe, resolved, lines)
    problems += mistakes
    if recipe is not None:
        problems += [*_misfits(recipe), *_missing_files(recipe)]
    if recipe is None or problems:
        number = "a mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        raise ConfigError(f"the recipe has {number}", where=where, problems=problems)
    return recipe


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a ``.yaml``, ``.yml`` or ``.toml`` file.

    Args:
        path: the file. Data files in it are relative to its folder.
        overrides: ``section.key=value``, the value as in YAML; paths in them are relative to
            the working directory, as a shell completes them.

    Raises:
        ConfigError: no such file, not readable, or mistakes; all of them together.
    """
    path = Path(path)
    text = _read_text(path)
    parse = _parse_toml if path.suffix.lower() == ".toml" else parse_yaml
    parsed = parse(text, where=str(path))
    # An overridden key is no longer what stands in its line.
    overridden = tuple(override.partition("=")[0].strip() for override in overrides)
    lines = {
        key: line
        for key, line in parsed.lines.items()
        if not any(key == name or key.startswith(f"{name}.") for name in overridden)
    }
    return parse_recipe(
        parsed.values, overrides=overrides, folder=path.parent, lines=lines, where=str(path)
    )
