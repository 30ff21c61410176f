"""From what a user names, a model's shape: the table, a folder, a config file, or the hub.

Only the config is read, never a weight. Of the hub only ``config.json`` is asked for.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ince.errors import ModelReferenceError, did_you_mean
from ince.plan.known_shapes import KNOWN_SHAPES, find_known
from ince.plan.shape import Shape

__all__ = ["read_shape", "shape_of_config", "shape_of_values"]

# Families of dense decoders, and what their layers have beyond those of Llama.
_FAMILIES: Mapping[str, Mapping[str, object]] = {
    "llama": {},
    "mistral": {},
    "smollm3": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"has_qk_norm": True},
    "gemma": {},
    "gemma2": {"norms_per_layer": 4},
    "gemma3": {"norms_per_layer": 4, "has_qk_norm": True},
    "gemma3_text": {"norms_per_layer": 4, "has_qk_norm": True},
}
_NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers")


def read_shape(reference: str, revision: str | None = None) -> Shape:
    """The shape of the model that `reference` names.

    Args:
        reference: a name of `KNOWN_SHAPES`, a packaged name, a folder, a ``config.json``, a GGUF
            file, or a hub id.
        revision: of a hub id.

    Raises:
        ModelReferenceError: no such model; or its config lacks what is needed, or is of a family
            that is no dense decoder known here.
        CorruptFileError: its files are damaged.
    """
    text = reference.strip()
    path = _existing(text)
    if path is None:
        known = find_known(text) if revision is None else None
        if known is not None:
            return known
        if "/" not in text and not text.lower().endswith((".gguf", ".json")):
            raise _unknown(text)
    if path is not None and path.is_file() and path.suffix == ".json":
        return shape_of_config(path, name=path.parent.name or path.name)
    if path is None and text.count("/") == 1 and not text.startswith((".", "~", "/")):
        return shape_of_config(_hub_config(text, revision), name=text)
    if path is not None and path.is_dir() and (path / "config.json").is_file():
        return shape_of_config(path / "config.json", name=path.name)
    from ince.models import resolve

    resolved = resolve(text, revision, convert=False)
    return shape_of_config(resolved.folder / "config.json", name=Path(text).name)


def _existing(text: str) -> Path | None:
    try:
        path = Path(text).expanduser()
        return path if text and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # no file could have this name
        return None


def _unknown(text: str) -> ModelReferenceError:
    names = [*KNOWN_SHAPES]
    return ModelReferenceError(
        "no model of this name is known" if text else "the model's name is empty",
        got=text,
        expected="a folder, a config.json, a hub id, or one of " + ", ".join(names),
        do=did_you_mean(text, names) or "write a hub id as owner/name",
    )


def _hub_config(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    from ince.models.hub import hub_error
    from ince.models.quiet import quiet_transformers

    try:
        with quiet_transformers(bars=False):
            return Path(hf_hub_download(hub_id, "config.json", revision=revision))
    except Exception as error:  # no network, no such repository, no permission
        raise hub_error(hub_id, hub_id, revision, error) from error


def shape_of_config(path: Path, *, name: str) -> Shape:
    """The shape that a ``config.json`` describes.

    Raises:
        ModelReferenceError: as of `read_shape`.
    """
    return shape_of_values(_read(path), name=name, where=path)


def shape_of_values(raw: Mapping[str, Any], *, name: str, where: object) -> Shape:
    """The shape that a config's values describe, as ``config.json`` has them.

    Raises:
        ModelReferenceError: as of `read_shape`, naming `where`.
    """
    inner = raw.get("text_config")
    text = cast("dict[str, Any]", inner) if isinstance(inner, dict) else raw
    family = str(text.get("model_type", raw.get("model_type", "")))
    if family not in _FAMILIES:
        raise ModelReferenceError(
            "no plan can be made for models of this family",
            where=where,
            got=family or "no model_type",
            expected=", ".join(_FAMILIES),
            do=did_you_mean(family, _FAMILIES),
        )
    missing = [key for key in _NEEDED if key not in text]
    if missing:
        raise ModelReferenceError(
            "the config lacks what a plan needs",
            where=where,
            got=f"no {', '.join(missing)}",
            expected=", ".join((*_NEEDED, "and the rest as transformers has it")),
            do="get the model's own config.json again",
        )
    config = _completed(family, text, where)
    hidden, heads = (
        _positive(config, "hidden_size", where),
        _positive(config, "num_attention_heads", where),
    )
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    attention_bias = bool(getattr(config, "attention_bias", False))
    options = dict(_FAMILIES[family])
    return Shape(
        name,
        hidden=hidden,
        mlp=_positive(config, "intermediate_size", where),
        num_layers=_positive(config, "num_hidden_layers", where),
        num_heads=heads,
        num_kv_heads=int(kv_heads),
        head_dim=int(head_dim),
        vocabulary=_positive(config, "vocab_size", where),
        is_tied=bool(raw.get("tie_word_embeddings", config.tie_word_embeddings)),
        qkv_bias=bool(options.get("qkv_bias", attention_bias)),
        o_bias=attention_bias,
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
        norms_per_layer=cast(int, options.get("norms_per_layer", 2)),
        has_qk_norm=bool(options.get("has_qk_norm", False)),
        max_length=getattr(config, "max_position_embeddings", None),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        raw: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelReferenceError(
            "the config cannot be read", where=path, got=f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(raw, dict):
        raise ModelReferenceError(
            "the config is no JSON object", where=path, got=type(raw).__name__, expected="{…}"
        )
    return cast("dict[str, Any]", raw)


def _completed(family: str, text: Mapping[str, Any], where: object) -> Any:
    """With transformers' own defaults for what the file leaves out."""
    from transformers import AutoConfig

    values = {key: value for key, value in text.items() if key != "model_type"}
    try:
        config: Any = AutoConfig.for_model(family, **values)
    except Exception as error:  # its validation raises classes of its own
        raise ModelReferenceError(
            "transformers cannot read the model's config",
            where=where,
            got=f"{type(error).__name__}: {error}",
        ) from error
    return config.get_text_config()


def _positive(config: Any, key: str, where: object) -> int:
    value: object = getattr(config, key, None)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelReferenceError(
            "the config has no usable size",
            where=f"{where}, {key}",
            got=value,
            expected="1 or more",
        )
    return value
