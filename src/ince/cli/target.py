"""What the user points at: a run, an adapter or a model, and the model that it stands for.

A run knows its base and in how many bits it was trained; one that trained every weight
(`train.method: full`) has a model of its own. An adapter on its own names its base
in `adapter_config.json`; in 16 bits unless told otherwise. Anything else is a model reference.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import ValidationError
from rich.console import Console

from ince.cli.adapter_base import CONFIG_FILE
from ince.errors import AdapterError, CorruptFileError, InputError
from ince.files import read_json
from ince.record import RunRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ince.lora import PeftModel
    from ince.quant import NF4Config
    from ince.recipe import ModelSection

__all__ = ["Loaded", "QuantizeChoice", "Target", "find_target", "load_target"]

QuantizeChoice = Literal["nf4", "none"]


@dataclass(frozen=True)
class Target:
    """What is to be loaded.

    Attributes:
        text: as the user wrote it.
        adapter: its folder, or None for a plain model.
        run: the run's folder, when it is (of) one.
        base: reference of the model, or of the adapter's base.
        revision: of the base, for a hub id.
        quantization: bits of the base; None for 16.
        compute_dtype: ``auto``, ``bfloat16``, ``float16`` or ``float32``.
        recipe: the run's recipe as recorded, or None.
        trained_from: what a whole model was trained from; None for what is none.
    """

    text: str
    adapter: Path | None
    run: Path | None
    base: str
    revision: str | None
    quantization: "NF4Config | None"
    compute_dtype: str
    recipe: dict[str, Any] | None
    trained_from: "Target | None" = None


@dataclass(frozen=True)
class Loaded:
    """A model that is ready: `model` has the adapter on it when `adapted` is set."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    adapted: "PeftModel | None"


def find_target(
    text: str, *, base: str | None = None, quantize: QuantizeChoice | None = None
) -> Target:
    """Find out what `text` names; nothing is loaded.

    Args:
        text: a run folder, an adapter folder or a model reference.
        base: the adapter's base, in place of the recorded one.
        quantize: bits of the base, in place of the recorded ones.

    Raises:
        InputError: the run has no result yet; `base` for something that is not an adapter.
        AdapterError: the adapter does not say what its base is.
        CorruptFileError: a record cannot be read.
    """
    path = Path(text).expanduser()
    if path.name in ("adapter", "model") and (path.parent / "run.json").is_file():
        path = path.parent
    if (path / "run.json").is_file():
        return _run(text, path, base, quantize)
    if (path / CONFIG_FILE).is_file():
        return _adapter(text, path, base, quantize)
    if base is not None:
        raise InputError(
            "a base can be given for an adapter or a run only",
            where=text,
            do="check the path: an adapter folder has an adapter_config.json, a run a run.json",
        )
    return Target(
        text=text,
        adapter=None,
        run=None,
        base=text,
        revision=None,
        quantization=_quantization(quantize),
        compute_dtype="auto",
        recipe=None,
    )


def _quantization(quantize: QuantizeChoice | None) -> "NF4Config | None":
    if quantize != "nf4":
        return None
    from ince.quant import NF4Config

    return NF4Config()


def _run(text: str, run: Path, base: str | None, quantize: QuantizeChoice | None) -> Target:
    record = RunRecord.read(run)
    if _is_full(record):
        return _full_run(text, run, record, base, quantize)
    adapter = run / "adapter"
    if not (adapter / CONFIG_FILE).is_file():
        raise InputError(
            "the run has no adapter yet",
            where=run,
            got=f"a run that is {record.get('status')}",
            do=f"finish it first: ince train {run}",
        )
    section = _model_section(record)
    return Target(
        text=text,
        adapter=adapter,
        run=run,
        base=section.base if base is None else base,
        revision=section.revision if base is None else None,
        quantization=section.to_nf4_config() if quantize is None else _quantization(quantize),
        compute_dtype=section.compute_dtype,
        recipe=cast("dict[str, Any]", record.get("recipe")),
    )


def _is_full(record: RunRecord) -> bool:
    recipe: object = record.get("recipe")
    train = cast("dict[str, object]", recipe).get("train") if isinstance(recipe, dict) else None
    return isinstance(train, dict) and cast("dict[str, object]", train).get("method") == "full"


def _full_run(
    text: str, run: Path, record: RunRecord, base: str | None, quantize: QuantizeChoice | None
) -> Target:
    model = run / "model"
    if base is not None:
        raise InputError(
            "every weight of this run was trained, so it goes on no base",
            where=run,
            do="leave the base out",
        )
    if not (model / "config.json").is_file():
        raise InputError(
            "the run has no model yet",
            where=run,
            got=f"a run that is {record.get('status')}",
            do=f"finish it first: ince train {run}",
        )
    section = _model_section(record)
    origin = Target(
        text=section.base,
        adapter=None,
        run=None,
        base=section.base,
        revision=section.revision,
        quantization=_quantization(quantize),
        compute_dtype=section.compute_dtype,
        recipe=None,
    )
    return replace(
        origin,
        text=text,
        run=run,
        base=str(model),
        revision=None,
        recipe=cast("dict[str, Any]", record.get("recipe")),
        trained_from=origin,
    )


def _model_section(record: RunRecord) -> "ModelSection":
    from ince.recipe import ModelSection

    recipe: object = record.get("recipe")
    try:
        return ModelSection.model_validate(
            cast("dict[str, object]", recipe)["model"] if isinstance(recipe, dict) else None
        )
    except (ValidationError, KeyError) as error:
        raise CorruptFileError(
            "the run record does not say which model was trained",
            where=record.path,
            got=recipe,
            do="give the run's adapter folder, copied elsewhere, with --base",
        ) from error


def _adapter(text: str, adapter: Path, base: str | None, quantize: QuantizeChoice | None) -> Target:
    config = read_json(adapter / CONFIG_FILE)
    named = config.get("base_model_name_or_path")
    revision = config.get("revision")
    if base is None and not (isinstance(named, str) and named):
        raise AdapterError(
            "the adapter does not say which base it belongs to",
            where=adapter / CONFIG_FILE,
            got=named,
            expected="a model reference in base_model_name_or_path",
            do="name the base yourself",
        )
    return Target(
        text=text,
        adapter=adapter,
        run=None,
        base=str(named) if base is None else base,
        revision=revision if base is None and isinstance(revision, str) else None,
        quantization=_quantization(quantize),
        compute_dtype="auto",
        recipe=None,
    )


def load_target(target: Target, console: Console, *, device: str = "auto") -> Loaded:
    """Load the model, and put the adapter on it.

    Raises:
        ModelReferenceError: no such model.
        AdapterError: the adapter does not fit.
        CorruptFileError: files are damaged.
    """
    import torch

    from ince.lora import PeftModel
    from ince.models import load_model
    from ince.recipe.progress import RunProgress

    with RunProgress(console).bars() as report:
        model, tokenizer = load_model(
            target.base,
            quantization=target.quantization,
            dtype=None if target.compute_dtype == "auto" else getattr(torch, target.compute_dtype),
            device=device,
            revision=target.revision,
            progress=report,
        )
    if target.adapter is None:
        return Loaded(model, tokenizer, None)
    adapted = PeftModel.from_pretrained(model, target.adapter)
    adapted.eval()
    # The base inside carries the adapter's layers: it generates with them.
    return Loaded(model, tokenizer, adapted)
