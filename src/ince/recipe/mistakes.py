"""What is wrong with a recipe, said to a person: key, value, expectation, likely repair.

pydantic finds the mistakes; here they get dotted keys, plain words, lines of the file and
suggestions, those that come from other tools' names for the same thing included.
"""

import math
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ince.errors import Problem, did_you_mean

__all__ = ["find_mistakes"]

_Model = TypeVar("_Model", bound=BaseModel)

# What the same things are called elsewhere, where spelling alone would not find them.
_ELSEWHERE = {
    "learning_rate": "train.lr",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "lr_scheduler": "train.schedule",
    "lr_scheduler_type": "train.schedule",
    "per_device_train_batch_size": "train.batch_tokens",
    "batch_size": "train.batch_tokens",
    "micro_batch_size": "train.micro_batch_tokens",
    "gradient_accumulation_steps": "train.micro_batch_tokens",
    "warmup_steps": "train.warmup_ratio",
    "gradient_clipping": "train.max_grad_norm",
    "eval_steps": "train.eval_every",
    "save_steps": "train.save_every",
    "save_total_limit": "train.keep_checkpoints",
    "neftune_noise_alpha": "train.neftune_alpha",
    "max_seq_length": "data.max_length",
    "sequence_len": "data.max_length",
    "cutoff_len": "data.max_length",
    "sample_packing": "data.packing",
    "train_file": "data.train",
    "dataset": "data.train",
    "datasets": "data.train",
    "validation_file": "data.eval",
    "base_model": "model.base",
    "model_name_or_path": "model.base",
    "attn_implementation": "model.attention",
    "flash_attention": "model.attention",
    "flex_attention": "model.attention",
    "load_in_4bit": "model.quantize",
    "bnb_4bit_use_double_quant": "model.double_quant",
    "bnb_4bit_compute_dtype": "model.compute_dtype",
    "rank": "lora.r",
    "lora_r": "lora.r",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target_modules": "lora.target_modules",
    "lora_target_linear": "lora.target_modules",
    "init_lora_weights": "lora.init",
    "output_dir": "output",
}

_MISSING = {
    "model.base": "for example smollm2-135m-instruct, which can be installed as a package",
    "data.train": "a file of rows, such as data/train.jsonl",
    "output": "the run's folder, such as runs/first",
}

# pydantic's type of error -> what was expected, filled from the error's context.
_EXPECTED = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "too_short": "at least {min_length} in the list",
    "too_long": "at most {max_length} in the list",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "keys with values",
    "model_type": "keys with values",
    "model_attributes_type": "keys with values",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "none_required": "null",
}


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _model_in(annotation: object) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _field_path(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The part of pydantic's location that the user wrote.

    pydantic appends the branches of a union; a dotted key ends at the field that has one.
    """
    path: list[str] = []
    current: type[BaseModel] | None = model
    for part in location:
        path.append(str(part))
        if current is None or str(part) not in current.model_fields:
            break
        field = current.model_fields[str(part)]
        current = _model_in(field.annotation)
        if current is None:
            break
    return path


def _dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        nested = _model_in(field.annotation)
        if nested is None:
            yield prefix + name
        else:
            yield from _dotted_keys(nested, f"{prefix}{name}.")


def _suggest_key(model: type[BaseModel], path: Sequence[str]) -> str | None:
    """A likely repair of an unknown key: a near name here, or its place in another section."""
    *sections, name = path
    here: type[BaseModel] | None = model
    for section in sections:
        if here is not None and section in here.model_fields:
            here = _model_in(here.model_fields[section].annotation)
    keys = list(_dotted_keys(model))
    if name in _ELSEWHERE and _ELSEWHERE[name] in keys:
        return f"here it is {_ELSEWHERE[name]}"
    moved = [key for key in keys if key.rpartition(".")[2] == name and key != ".".join(path)]
    if moved:
        return f"it belongs in {moved[0]}"
    near = did_you_mean(name, here.model_fields) if here is not None else None
    if near:
        return near
    leaves = {key.rpartition(".")[2]: key for key in keys}
    other = did_you_mean(name, leaves)
    return None if other is None else f"did you mean {leaves[other.split(chr(39))[1]]!r}?"


def _choices(annotation: object) -> list[str]:
    found: list[str] = []
    for argument in get_args(annotation):
        found += [argument] if isinstance(argument, str) else _choices(argument)
    return found


def _suggest_value(model: type[BaseModel], path: Sequence[str], error: ErrorDetails) -> str | None:
    if error["type"] == "string_type" and isinstance(error["input"], (int, float, bool)):
        return "put it in quotes if it is a name"
    if error["type"] != "literal_error" or not isinstance(error["input"], str):
        return None
    holder: type[BaseModel] | None = model
    for section in path[:-1]:
        if holder is None or section not in holder.model_fields:
            return None
        holder = _model_in(holder.model_fields[section].annotation)
    if holder is None or path[-1] not in holder.model_fields:
        return None
    return did_you_mean(error["input"], _choices(holder.model_fields[path[-1]].annotation))


def _describe(error: ErrorDetails) -> tuple[str | None, str]:
    """What was expected, when that can be said in a phrase, and the whole sentence otherwise."""
    template = _EXPECTED.get(error["type"])
    context: dict[str, Any] = error.get("ctx", {})
    if template is not None:
        return template.format(**context), ""
    if error["type"] == "value_error":
        return None, str(context.get("error", error["msg"]))
    return None, f"got {_shown(error['input'])}: {error['msg'][:1].lower()}{error['msg'][1:]}"


def _takes(annotation: object, wanted: type) -> bool:
    if annotation is wanted or (wanted is bool and isinstance(annotation, bool)):
        return True
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_takes(argument, wanted) for argument in get_args(annotation))
    return any(isinstance(argument, wanted) for argument in get_args(annotation))


def _find_disguised(
    model: type[BaseModel], values: Mapping[str, object], prefix: str = ""
) -> Iterator[Problem]:
    """Values that pydantic would convert without a word: ``epochs: true`` into 1.0."""
    for name, field in model.model_fields.items():
        value = values.get(name)
        nested = _model_in(field.annotation)
        if nested is not None and isinstance(value, Mapping):
            yield from _find_disguised(nested, value, f"{prefix}{name}.")
        elif isinstance(value, bool) and not _takes(field.annotation, bool):
            number = _takes(field.annotation, int) or _takes(field.annotation, float)
            if number:
                yield Problem(prefix + name, f"got {_shown(value)}, expected a number")
        elif isinstance(value, float) and not math.isfinite(value):
            yield Problem(prefix + name, f"got {value}, expected a finite number")
        elif (
            not isinstance(value, bool)
            and isinstance(value, (int, float, str))
            and _takes(field.annotation, bool)
            and not _takes(field.annotation, type(value))
        ):
            yield Problem(prefix + name, f"got {_shown(value)}, expected true or false")


def find_mistakes(
    model: type[_Model],
    values: Mapping[str, object],
    lines: Mapping[str, int] | None = None,
) -> tuple[_Model | None, list[Problem]]:
    """Validate `values`: the built model and no problems, or None and all of them.

    Args:
        model: the class to build.
        values: as read from a file.
        lines: line of each dotted key, where it is known.
    """
    problems: dict[str, Problem] = {}
    for problem in _find_disguised(model, values):
        problems[problem.key] = problem
    built: _Model | None = None
    expected: dict[str, list[str]] = {}
    try:
        built = model.model_validate(dict(values))
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False):
            path = _field_path(model, error["loc"])
            key = ".".join(path)
            if key in problems and key not in expected:
                continue
            if error["type"] == "extra_forbidden":
                problems[key] = Problem(key, "unknown key", _suggest_key(model, path))
            elif error["type"] == "missing" and len(path) < len(error["loc"]):
                problems[key] = Problem(key, f"got {_shown(error['input'])}, too few values")
            elif error["type"] == "missing":
                problems[key] = Problem(key, "is missing", _MISSING.get(key))
            else:
                phrase, sentence = _describe(error)
                if phrase is None:
                    problems.setdefault(key, Problem(key, sentence))
                    continue
                phrases = expected.setdefault(key, [])
                phrases += [phrase] if phrase not in phrases else []
                what = f"got {_shown(error['input'])}, expected {' or '.join(phrases)}"
                problems[key] = Problem(key, what, _suggest_value(model, path, error))
    found: list[Problem] = []
    for problem in problems.values():
        line = (lines or {}).get(problem.key)
        what = problem.what if line is None else f"{problem.what} [line {line}]"
        found.append(Problem(problem.key, what, problem.suggestion))
    return (built if not found else None), found
