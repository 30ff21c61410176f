"""LoftQ for a base that is in 4 bits already: its originals are read from their checkpoint.

The base stays as it is. A and B of a fresh adapter become the best repair of what quantizing
lost, one layer at a time: memory holds one original weight.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ince.errors import AdapterError, InputError
from ince.formats.checkpoint import Checkpoint
from ince.lora.placement.inject import lora_layers
from ince.lora.placement.names import check_known
from ince.lora.placement.start import put_start
from ince.lora.starts.loftq import repair
from ince.lora.starts.start import Start
from ince.quant import Linear4bit

if TYPE_CHECKING:
    from ince.lora.peft_model import PeftModel

__all__ = ["replace_lora_weights_loftq"]


@torch.no_grad()
def replace_lora_weights_loftq(
    peft_model: "PeftModel",
    model_path: str | Path | None = None,
    adapter_name: str = "default",
    callback: Callable[["PeftModel", str], bool] | None = None,
) -> None:
    """Set A and B of every 4-bit layer to the repair of its quantization error.

    Args:
        peft_model: over a base in 4 bits.
        model_path: folder of the original's safetensors; by default the base's own.
        adapter_name: of the adapter.
        callback: (model, layer's name) after each layer; False takes the change back.

    Raises:
        AdapterError: no such adapter, no 4-bit layer of it, or an original of another shape;
            no layer was changed.
        InputError: no such folder, or it lacks a layer's weight.
        CorruptFileError: a file is cut off or garbled.
    """
    check_known(adapter_name, peft_model.peft_config)
    base = peft_model.get_base_model()
    layers = {
        name: layer
        for name, layer in lora_layers(base)
        if adapter_name in layer.specs and isinstance(layer.base_layer, Linear4bit)
    }
    if not layers:
        raise AdapterError(
            "no layer of the adapter is in 4 bits: there is no error to repair",
            where=adapter_name,
            do='start with init_lora_weights="loftq", which quantizes the layers too',
        )
    checkpoint = _originals(base, model_path)
    for name, layer in layers.items():
        entry = checkpoint.entries.get(f"{name}.weight")
        if entry is None or entry.shape != (layer.out_features, layer.in_features):
            raise AdapterError(
                "the checkpoint is not the original of this base",
                where=checkpoint.folder,
                got=f"{name}.weight {'missing' if entry is None else entry.shape}",
                expected=(layer.out_features, layer.in_features),
                do="give the folder of the model before it was quantized",
            )
    for name, layer in layers.items():
        spec = layer.specs[adapter_name]
        old_a, old_b = (t.detach().clone() for t in layer.factor_parameters(adapter_name))
        packed = layer.base_layer
        assert isinstance(packed, Linear4bit)
        original = checkpoint.tensor(f"{name}.weight")
        start = repair(original, packed, spec.r, spec.scaling, name=name)
        put_start(layer, adapter_name, start, name=name)
        if callback is not None and not callback(peft_model, name):
            put_start(layer, adapter_name, Start(old_a, old_b), name=name)


def _originals(base: torch.nn.Module, model_path: str | Path | None) -> Checkpoint:
    where = model_path if model_path is not None else getattr(base, "name_or_path", None)
    if not where or not Path(where).is_dir():
        raise InputError(
            "the original weights are not known",
            got=where,
            expected="a folder with the model's safetensors, before quantization",
            do="give it as model_path",
        )
    return Checkpoint(Path(where))
