"""The steps of transformers' loading that make packed weights: out of floats, or out of files.

transformers streams a checkpoint tensor by tensor through conversion steps. `PackOnLoad` packs a
weight when it comes, so that no model of 16 bits is ever whole; `ReadPacked` puts a packed one
together out of its tensors. Both then put a module over the packed weight where the weight was,
and hand its parts back to transformers, which places them on devices and disks.

Where a model's class wants the experts of a mixture stacked that a checkpoint has one by one,
transformers stacks them before they come here: one stack of 16 bits is held at a time.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.core_model_loading import (
    ConversionOps,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

from ince.errors import CorruptFileError, QuantError
from ince.formats.bitsandbytes import packed_names, read_packed
from ince.formats.bitsandbytes_state import PackedState, decode_state
from ince.quant import (
    Experts4bit,
    Linear4bit,
    NF4Config,
    quantizable_names,
    quantizable_stacks,
)
from ince.quant.experts4bit import is_fused_experts, put_experts

__all__ = ["PackOnLoad", "Packing", "ReadPacked", "StoredPacked", "pack_rest", "packable_names"]

_SUFFIXES = (
    ".absmax",
    ".quant_map",
    ".nested_absmax",
    ".nested_quant_map",
    ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4",
    "",
)


class Packing(Protocol):
    """What the steps know of a quantizer."""

    config: NF4Config
    names: set[str]
    """Of the weights to be packed."""
    errors: list[QuantError]
    """To be told when loading is done, which goes on as it can."""
    missing: set[str] | None
    """transformers' set of what has not come yet; None before the first weight is packed."""


_FLOATS = ("F32", "BF16", "F16", "F64")


def packable_names(model: Any, config: NF4Config) -> set[str]:
    """The parameters of a model without weights that are to be packed, by dotted name.

    Those of `quantize_model`; but not what is tied, nor the head of a task, which a checkpoint
    of the base does not have.
    """
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    kept = {*tied, *tied.values()}
    if model.get_output_embeddings() is None:
        kept.add(list(model.named_parameters())[-1][0])
    names = {f"{name}.weight" for name in quantizable_names(model, config)}
    return (names | set(quantizable_stacks(model, config))) - kept


@dataclass
class StoredPacked:
    """The packed weights of a checkpoint: their names there, and what is said of each."""

    weights: dict[str, PackedState] = field(default_factory=dict[str, PackedState])

    @classmethod
    def of(cls, files: Iterable[str]) -> "StoredPacked":
        """Those of a checkpoint's files; only safetensors can hold some.

        Raises:
            QuantError: one of them is of a format that cannot be read.
            CorruptFileError: a file is cut off.
        """
        found: dict[str, PackedState] = {}
        kinds: dict[str, str] = {}
        for file in files:
            if not str(file).endswith(".safetensors"):
                continue
            try:
                opened: Any = safe_open(file, framework="pt", device="cpu")
            except (SafetensorError, OSError) as error:
                raise CorruptFileError(
                    "not readable as safetensors",
                    where=file,
                    got=str(error),
                    do="the file is cut off or is something else; get it again",
                ) from error
            with opened as shard:
                names = list(shard.keys())
                for weight, parts in packed_names(names).items():
                    found[weight] = decode_state(parts[-1], shard.get_tensor(parts[-1]))
                kinds |= {n: shard.get_slice(n).get_dtype() for n in names if n.endswith(".weight")}
        _check_floats({name: kind for name, kind in kinds.items() if name not in found})
        return cls(found)

    def __bool__(self) -> bool:
        return bool(self.weights)

    def config(self, asked: NF4Config) -> NF4Config:
        """`asked` with what the files say.

        Raises:
            QuantError: it asks for something else by name.
        """
        state = next(iter(self.weights.values()))
        is_nested = state.nested_offset is not None
        there: dict[str, object] = {
            "quant_type": state.quant_type,
            "blocksize": state.blocksize,
            "double_quant": is_nested,
        }
        other = {
            name: value
            for name, value in there.items()
            if name in asked.model_fields_set and getattr(asked, name) != value
        }
        if other:
            raise QuantError(
                "the weights are packed already, in another way than asked for",
                got=", ".join(f"{name}={getattr(asked, name)!r}" for name in other),
                expected=", ".join(f"{name}={value!r}" for name, value in other.items()),
                do="leave these settings out, or quantize from the 16-bit model",
            )
        return asked.model_copy(update=there)

    def conversions(
        self, others: Sequence[Any], model: Any, quantizer: "Packing"
    ) -> list[WeightConverter]:
        """What collects the tensors of each packed weight for `ReadPacked`.

        Args:
            others: the conversions that the model's class wants.
            model: without weights.
            quantizer: which is told of what fails.

        Raises:
            QuantError: the class wants packed weights split or fused.
        """
        del model
        renamings = [each for each in others if isinstance(each, WeightRenaming)]
        converters = [each for each in others if isinstance(each, WeightConverter)]
        owners: dict[str, list[str]] = {}
        for name in self.weights:
            renamed, converted = rename_source_key(name, renamings, converters)
            if converted is not None:
                raise QuantError(
                    "packed weights that the model's class has in another form",
                    where=name,
                    got="experts or projections packed one by one",
                    expected="the form of the class, where they are fused or split",
                    do="quantize again from the 16-bit model; "
                    "ince.load_model reads some of these forms",
                )
            owner, _, leaf = renamed.rpartition(".")
            owners.setdefault(leaf, []).append(owner)
        return [
            WeightConverter(
                [_pattern(names, leaf, suffix) for suffix in _SUFFIXES],
                rf"\1.{leaf}",
                [ReadPacked(quantizer)],
            )
            for leaf, names in owners.items()
        ]


def _check_floats(kinds: Mapping[str, str]) -> None:
    """Refuse weights of other formats, which would be taken for the numbers that they are not."""
    for name, kind in kinds.items():
        if kind not in _FLOATS:
            raise QuantError(
                "a weight is stored in a format that ince does not read",
                where=name,
                got=kind,
                expected=f"{', '.join(_FLOATS)}; or 4 bits of bitsandbytes",
                do="use the original model that this one was made from",
            )


def _pattern(owners: Sequence[str], leaf: str, suffix: str) -> str:
    # The owner is a group, which the target has back: names are matched whole.
    return f"^({'|'.join(re.escape(name) for name in owners)}){re.escape(f'.{leaf}{suffix}')}$"


class PackOnLoad(ConversionOps):
    """Packs weights when they come, in floats."""

    def __init__(self, hf_quantizer: "Packing") -> None:
        self.hf_quantizer = hf_quantizer

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str] | None = None,
        target_patterns: list[str] | None = None,
        *,
        model: Any = None,
        missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Full name → weight, to full name → part."""
        del source_patterns, target_patterns, kwargs
        quantizer = self.hf_quantizer
        quantizer.missing = missing_keys
        parts: dict[str, Any] = {}
        for name, value in input_dict.items():
            weight: Tensor = value[0] if isinstance(value, list) else value
            if name not in quantizer.names:
                parts[name] = weight
                continue
            try:
                made = _packed(weight, quantizer.config, name)
            except QuantError as error:
                quantizer.errors.append(error)
                parts[name] = weight
                continue
            parts |= put_packed(model, name, made)
            if missing_keys is not None:
                missing_keys.discard(name)
        return parts


class ReadPacked(ConversionOps):
    """Puts packed weights together out of their tensors."""

    def __init__(self, hf_quantizer: "Packing") -> None:
        self.hf_quantizer = hf_quantizer

    def __deepcopy__(self, memo: object) -> "ReadPacked":
        # transformers copies the steps for every weight: all tell the same quantizer.
        return self

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str] | None = None,
        target_patterns: list[str] | None = None,
        *,
        full_layer_name: str = "",
        model: Any = None,
        missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Pattern → tensor of one weight, to full name → part."""
        del target_patterns, kwargs
        name = full_layer_name
        # The patterns stand in the order of the suffixes.
        suffixes = dict(zip(source_patterns or (), _SUFFIXES, strict=True))
        tensors = {
            name + suffixes[pattern]: value[0] if isinstance(value, list) else value
            for pattern, value in input_dict.items()
        }
        if missing_keys is not None:
            missing_keys.discard(name)
        quantizer = self.hf_quantizer
        try:
            weight = read_packed(name, tensors)
            config = weight.config(quantizer.config.compute_dtype)
            made = _empty(model, name, weight.shape, config)
        except QuantError as error:
            quantizer.errors.append(error)
            return {}
        for part in ("packed", "absmax", "nested_absmax", "nested_offset"):
            setattr(made, part, getattr(weight, part))
        return put_packed(model, name, made)


def _packed(weight: Tensor, config: NF4Config, name: str) -> Linear4bit | Experts4bit:
    if weight.ndim == 3:
        return Experts4bit.from_weight(weight, config=config, name=name)
    return Linear4bit.from_weight(weight, config=config, name=name)


def _empty(
    model: Any, name: str, shape: tuple[int, ...], config: NF4Config
) -> Linear4bit | Experts4bit:
    """A module for what is stored as `name`, if the model has a weight of this shape there."""
    owner, _, leaf = name.rpartition(".")
    module = cast(nn.Module, model.get_submodule(owner))
    there = tuple(module.get_parameter(leaf).shape)
    if there != shape:
        raise QuantError(
            "a packed weight does not fit the model",
            where=name,
            got=f"shape {shape}",
            expected=f"shape {there}, of the model's config",
            do="config.json and the weights belong to different models; get both again",
        )
    if isinstance(module, nn.Linear):
        return Linear4bit(shape[1], shape[0], config=config, device="meta")
    if is_fused_experts(module) and len(shape) == 3:
        return Experts4bit(shape, config=config, device="meta")
    raise QuantError(
        "a packed weight is of a module that ince has none for in four bits",
        where=name,
        got=type(module).__name__,
        expected="a linear layer, or fused experts",
        do="use the original 16-bit model",
    )


def put_packed(model: Any, name: str, made: Linear4bit | Experts4bit) -> dict[str, Tensor]:
    """Put `made` where the weight `name` is, without its parts; those by their full names."""
    owner, _, leaf = name.rpartition(".")
    module = cast(nn.Module, model.get_submodule(owner))
    parts = made.parts()
    made.to("meta")
    # Marked so that nothing draws first values for them.
    setattr(made, "_is_hf_initialized", True)  # noqa: B010  not declared
    if isinstance(made, Experts4bit):
        put_experts(module, leaf, made)
        setattr(module, "_is_hf_initialized", True)  # noqa: B010
        return {f"{name}.{part}": tensor for part, tensor in parts.items()}
    # A bias comes before the weight or after it, and is the module's either way.
    made.bias = cast("nn.Parameter | None", module.bias)
    made.train(module.training)
    parent, _, own = owner.rpartition(".")
    setattr(model.get_submodule(parent), own, made)
    return {f"{owner}.{part}": tensor for part, tensor in parts.items()}


def pack_rest(model: Any, quantizer: Packing) -> None:
    """Pack what came into the model by another way than `PackOnLoad`.

    What did not come at all is new, as the layers of a task are: it stays in floats.

    Raises:
        QuantError: nothing came of what was to be packed.
    """
    names, config = quantizer.names, quantizer.config
    if quantizer.missing is None or names <= quantizer.missing:
        raise QuantError(
            "the files hold none of the weights that are to be packed",
            got=f"{len(names)} weights missing",
            do="the files are of another model, or in a format that ince does not read",
        )
    there = dict(model.named_parameters())
    for name in sorted(names - quantizer.missing):
        weight = there.get(name)
        if weight is None or weight.is_meta:
            continue
        made = _packed(weight, config, name)
        for full, tensor in put_packed(model, name, made).items():
            place, _, part = full.rpartition(".")
            setattr(model.get_submodule(place), part, tensor)
