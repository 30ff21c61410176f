"""What an `adapter_config.json` says about how its tensors are to be read.

Not `LoraConfig`: that is strict, since an option must not be ignored in training. Here a file
is described, whoever wrote it; what cannot be taken at face value becomes a note.
"""

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard, cast

from ince.errors import AdapterError
from ince.lora.placement.specs import value_of

__all__ = ["METHODS", "AdapterSettings", "read_settings"]

METHODS: Mapping[str, str] = {"LORA": "LoRA", "VERA": "VeRA", "ADALORA": "AdaLoRA"}

# Starts that take something out of the base, so that base and update are right only together.
_CHANGES_BASE = re.compile(r"(pissa(_niter_\d+)?|olora|loftq|corda|lora_ga)")

_GREATEST = sys.float_info.max
# What torch takes for a seed.
_SEEDS = range(-(2**63), 2**63)

# Options that make of B A something else than the update of a whole weight.
_OTHER_MEANING: Mapping[str, str] = {
    "alora_invocation_tokens": "the update acts only after its invocation tokens",
    "arrow_config": "the update is routed among several adapters",
    "kasa_config": "the update is scaled by trained singular values",
    "monteclora_config": "the update is sampled",
    "use_bdlora": "factors are block-diagonal shards",
    "use_qalora": "A reads pooled inputs",
    "velora_config": "activations were compressed in training",
}


@dataclass(frozen=True)
class AdapterSettings:
    """The part of a config that gives its tensors their meaning.

    Attributes:
        peft_type: ``LORA``, ``VERA`` or ``ADALORA``.
        r, alpha: the general rank and alpha; a layer may have its own by a pattern.
        rank_pattern, alpha_pattern: by suffix or regular expression.
        targets: names of modules, or the one expression that chooses them.
        start: `init_lora_weights` as text.
        base, revision: what the adapter says it was trained on.
        projection_seed: VeRA's, when its projections are not in the file.
        notes: what a reader of the numbers must know.
    """

    peft_type: str
    r: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    use_rslora: bool
    use_dora: bool
    fan_in_fan_out: bool
    targets: str | tuple[str, ...] | None
    target_parameters: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    bias: str
    start: str
    base: str | None
    revision: str | None
    projection_seed: int | None
    notes: tuple[str, ...]

    @property
    def method(self) -> str:
        """As people call it: LoRA, rsLoRA, DoRA, rsLoRA + DoRA, VeRA, AdaLoRA."""
        if self.peft_type != "LORA":
            return METHODS[self.peft_type]
        names = [name for name, on in (("rsLoRA", self.use_rslora), ("DoRA", self.use_dora)) if on]
        return " + ".join(names) or "LoRA"

    @property
    def changes_base(self) -> bool:
        """Whether the start took its first update out of the base's weights."""
        return _CHANGES_BASE.fullmatch(self.start) is not None

    def rank_of(self, name: str) -> int:
        """The rank that the config gives the module (or parameter) `name`."""
        return int(value_of(self.rank_pattern, name, self.r))

    def scale_of(self, name: str, r: int) -> float:
        """The factor s of the update of `name`, which has rank `r`.

        Of VeRA 1. Of AdaLoRA ``alpha / (init_r + 1e-5)`` as in PEFT, whatever rank is left.
        """
        if self.peft_type == "VERA":
            return 1.0
        alpha = value_of(self.alpha_pattern, name, self.alpha)
        if self.peft_type == "ADALORA":
            return (alpha if alpha > 0 else float(self.r)) / (self.r + 1e-5)
        return alpha / (math.sqrt(r) if self.use_rslora else r)


def _is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a finite number that a float can hold: JSON's integers have no end."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -_GREATEST <= value <= _GREATEST  # false for NaN too


class _Reader:
    """Typed access to a config; the first value of another type is an error that names it."""

    def __init__(self, values: Mapping[str, object], where: Path) -> None:
        self.values, self.where = values, where

    def wrong(self, key: str, expected: str) -> AdapterError:
        return AdapterError(
            f"{key} of the adapter's config cannot be used",
            where=self.where,
            got=self.values.get(key),
            expected=expected,
            do="copy or download the adapter again",
        )

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key)
        value = default if value is None else value
        if not _is_number(value):
            raise self.wrong(key, "a number")
        return value

    def rank(self, key: str, default: int) -> int:
        value = self.number(key, default)
        if value != int(value) or value < 1:
            raise self.wrong(key, "a whole number of at least 1")
        return int(value)

    def seed(self, key: str) -> int:
        value = self.values.get(key)
        value = 0 if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value not in _SEEDS:
            raise self.wrong(key, "a whole number of 64 bits")
        return value

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value or None

    def flag(self, key: str) -> bool:
        return self.values.get(key) is True

    def names(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key)
        if value is None:
            return ()
        items = cast("Sequence[object]", value)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in items):
            raise self.wrong(key, "a list of names")
        return tuple(str(item) for item in items)

    def table(self, key: str) -> dict[str, float]:
        value = self.values.get(key)
        found: dict[str, float] = {}
        if value is None:
            return found
        if not isinstance(value, dict):
            raise self.wrong(key, "numbers by name")
        for pattern, entry in cast("dict[str, object]", value).items():
            if not _is_number(entry) or entry <= 0:
                raise self.wrong(key, "numbers by name")
            try:
                re.compile(pattern)
            except re.error as error:
                raise self.wrong(key, "names or regular expressions") from error
            found[pattern] = entry
        return found


def read_settings(config: Mapping[str, object], *, where: Path) -> AdapterSettings:
    """Read the content of an `adapter_config.json`.

    Raises:
        AdapterError: another method than those of `METHODS`, or a value of a wrong kind.
    """
    peft_type = config.get("peft_type")
    if not isinstance(peft_type, str) or peft_type not in METHODS:
        raise AdapterError(
            "not an adapter of a method that can be inspected",
            where=where,
            got=f"peft_type {peft_type!r}",
            expected=" or ".join(f"{key!r} ({METHODS[key]})" for key in METHODS),
            do="inspect it with the tool it is from",
        )
    reader = _Reader(config, where)
    adalora, vera = peft_type == "ADALORA", peft_type == "VERA"
    targets = config.get("target_modules")
    start: object = config.get("init_weights" if vera else "init_lora_weights", True)
    return AdapterSettings(
        peft_type=peft_type,
        r=reader.rank("init_r", 12) if adalora else reader.rank("r", 256 if vera else 8),
        alpha=1.0 if vera else reader.number("lora_alpha", 8),
        # AdaLoRA keeps there which directions it pruned, by name: the file's shapes say it.
        rank_pattern={}
        if adalora
        else {name: int(value) for name, value in reader.table("rank_pattern").items()},
        alpha_pattern={} if adalora else reader.table("alpha_pattern"),
        use_rslora=reader.flag("use_rslora") and not adalora,
        use_dora=reader.flag("use_dora") and not adalora,
        fan_in_fan_out=reader.flag("fan_in_fan_out"),
        targets=targets if isinstance(targets, str) else reader.names("target_modules") or None,
        target_parameters=reader.names("target_parameters"),
        modules_to_save=reader.names("modules_to_save"),
        bias=reader.text("bias") or "none",
        start=start if isinstance(start, str) else str(start is not False).lower(),
        base=reader.text("base_model_name_or_path"),
        revision=reader.text("revision"),
        projection_seed=reader.seed("projection_prng_key") if vera else None,
        notes=tuple(_notes(config)),
    )


def _notes(config: Mapping[str, object]) -> Iterator[str]:
    for key, meaning in _OTHER_MEANING.items():
        if config.get(key) not in (None, False, {}, []):
            yield f"{key} is set: {meaning}; numbers here are those of plain s·BA"
    if config.get("layer_replication"):
        yield "layer_replication is set: layers are counted as the adapter's model has them"
