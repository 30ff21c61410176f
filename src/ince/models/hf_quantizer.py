"""ince's quantizer behind ``AutoModelForCausalLM.from_pretrained(…, quantization_config=…)``.

transformers looks quantizers up in a registry by the `quant_method` of a config. An `NF4Config`
says "ince", and has `register` called when it is asked (see `ince.quant.config`): the quantizer
is there when it is needed, and importing ince imports no transformers.

    from_pretrained(ref, quantization_config=NF4Config())     16-bit weights: each is packed as
                                                              it is read
    config = AutoConfig.from_pretrained(folder, quantization_config=NF4Config())
    from_pretrained(folder, config=config)                    packed weights: read as they are
    model.save_pretrained(folder)                             bitsandbytes' layout

A folder in that layout says ``"quant_method": "bitsandbytes"``, so that every program reads it.
For transformers it is then bitsandbytes' own, and ``from_pretrained(folder)`` makes its layers;
a config passed beside the stored one it refuses. Asked for through `AutoConfig`, as above, or
by `ince.load_model`, the same folder becomes ince's.

Packed weights are buffers. Under a device map that leaves layers to disks, accelerate moves
buffers with them only when ``from_pretrained`` is told ``offload_buffers=True``.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import ConversionOps, PrefixChange, WeightConverter
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.utils.quantization_config import QuantizationConfigMixin

from ince.errors import QuantError
from ince.formats.bitsandbytes_config import config_to_bitsandbytes
from ince.formats.bitsandbytes_state import STORED_TYPES
from ince.models.hf_packing import (
    PackOnLoad,
    ReadPacked,
    StoredPacked,
    pack_rest,
    packable_names,
)
from ince.models.hf_state_dict import keep_offloaded, left_out, packed_state_dict, unpack
from ince.quant import Experts4bit, NF4Config, packed_modules, packed_weight_name
from ince.quant.config import QUANT_METHOD

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["InceQuantizer", "PackedModelConfig", "make_quantized", "register"]


class PackedModelConfig(QuantizationConfigMixin):
    """What a packed model's config holds: an `NF4Config`, and the layers that were left out.

    In ``config.json`` it becomes bitsandbytes' terms.
    """

    def __init__(self, config: NF4Config, left_out: tuple[str, ...] | None = None) -> None:
        self.quant_method = cast(Any, QUANT_METHOD)
        self.config = config
        self.left_out = left_out

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """From the fields of an `NF4Config`; see `NF4Config.to_dict`."""
        fields = {name: value for name, value in config_dict.items() if name != "quant_method"}
        found = cls(NF4Config.model_validate(fields))
        return (found, kwargs) if return_unused_kwargs else found

    def to_dict(self) -> dict[str, Any]:
        """For ``config.json``."""
        if self.config.quant_type not in STORED_TYPES:
            return self.config.to_dict()  # such a model is not saved, but its config is printed
        return config_to_bitsandbytes(self.config, self.left_out)

    def get(self, key: str, default: object = None) -> object:
        """As of a dictionary, which is how transformers asks a model's config."""
        return self.to_dict().get(key, default)


class InceQuantizer(HfQuantizer):
    """Packs linear layers and fused experts as they are loaded; saves them; trains over them.

    Args:
        quantization_config: an `NF4Config`, or what a packed model's config holds.
        pre_quantized: whether the config says so. What counts is what the files hold.
    """

    requires_calibration = False

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        held = quantization_config
        self.config: NF4Config = held.config if isinstance(held, PackedModelConfig) else held
        self.stored = StoredPacked()
        self.names: set[str] = set()
        self.errors: list[QuantError] = []
        self.missing: set[str] | None = None
        self.has_experts = False

    # --------------------------------------------------------------------------- before loading

    def _process_model_before_weight_loading(
        self, model: "PreTrainedModel", checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        del kwargs
        self.stored = StoredPacked.of(checkpoint_files or [])
        self.pre_quantized = bool(self.stored)
        if self.pre_quantized:
            self.config = self.stored.config(self.config)
        else:
            self.names = packable_names(model, self.config)

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """Add what puts a packed weight together out of its tensors."""
        if not self.pre_quantized:
            return weight_conversions
        return weight_conversions + self.stored.conversions(weight_conversions, model, self)

    def param_needs_quantization(
        self, model: "PreTrainedModel", param_name: str, **kwargs: Any
    ) -> bool:
        """Whether a weight is to be packed as it is loaded."""
        del model, kwargs
        return param_name in self.names

    def param_element_size(self, model: Any, param_name: str, param: torch.Tensor) -> float:
        """Bytes of a weight, as device maps are planned by."""
        if self.param_needs_quantization(model, param_name):
            return self.config.bits_per_weight / 8
        return param.element_size()

    def get_quantize_ops(self) -> ConversionOps:
        """What packs a weight."""
        return PackOnLoad(self)

    # ---------------------------------------------------------------------------- after loading

    def _process_model_after_weight_loading(self, model: "PreTrainedModel", **kwargs: Any) -> None:
        del kwargs
        if self.errors:
            raise self.errors[0]
        if not self.pre_quantized:
            pack_rest(model, self)
        layers = packed_modules(model)
        for layer in layers.values():
            layer.requires_grad_(False)
        keep_offloaded(layers)
        _forget_conversions(model, [packed_weight_name(*item) for item in layers.items()])
        self.has_experts = any(isinstance(layer, Experts4bit) for layer in layers.values())
        held = PackedModelConfig(self.config, left_out(model))
        self.quantization_config = held
        model.config.quantization_config = held

    def get_state_dict_and_metadata(
        self, model: Any
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """The model's tensors in bitsandbytes' layout."""
        return packed_state_dict(model), {}

    def is_serializable(self) -> bool:
        """Whether the layout has the format: NF4 and FP4."""
        return self.config.quant_type in STORED_TYPES

    @property
    def is_trainable(self) -> bool:
        """Adapters train over packed weights."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Whether a compiler gets through: not where experts are picked one by one."""
        return not self.has_experts

    def _dequantize(self, model: Any, dtype: torch.dtype | str | None = None) -> nn.Module:
        # A config has its dtype as text once it has been saved.
        return unpack(model, getattr(torch, dtype) if isinstance(dtype, str) else dtype)


def register() -> None:
    """Put the quantizer into transformers' registry; nothing happens when it is there."""
    if QUANT_METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(QUANT_METHOD)(PackedModelConfig)
    if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(QUANT_METHOD)(InceQuantizer)


def make_quantized(model: "PreTrainedModel", config: NF4Config) -> None:
    """Tell transformers that `model` is quantized, as if its `from_pretrained` had done it.

    For a model that was packed in another way: `save_pretrained` then writes bitsandbytes'
    layout, and `transformers.Trainer` knows what it has.

    Args:
        model: with packed layers.
        config: of the quantization.
    """
    register()
    quantizer = InceQuantizer(config, pre_quantized=True)
    marked = cast(Any, model)
    marked.is_quantized = True
    marked.quantization_method = QUANT_METHOD
    marked.hf_quantizer = quantizer
    quantizer.postprocess_model(model)


def _forget_conversions(model: Any, packed: list[str]) -> None:
    """Take out what `save_pretrained` would undo, but cannot with packed weights.

    Their tensors have their names in the file already, and what was fused or split to be
    packed stays so.
    """
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None:
        known = get_model_conversion_mapping(model, add_legacy=False)
        conversions = [each for each in known if not isinstance(each, PrefixChange)]
    model._weight_conversions = [
        each
        for each in conversions
        if not isinstance(each, WeightConverter) or _is_kept(each, packed)
    ]


def _is_kept(conversion: WeightConverter, packed: list[str]) -> bool:
    if any(isinstance(operation, ReadPacked) for operation in conversion.operations):
        return False
    back = conversion.reverse_transform()
    return not any(back.rename_source_key(name)[1] is not None for name in packed)
