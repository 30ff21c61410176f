"""Which rows of a layer's input count as data: not those of padding, nor of prompts.

These are PEFT's extension points for EVA, with its names and arguments: one function turns a
batch into what the other needs to choose rows from each layer's input.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from ince.errors import AdapterError, DataError, did_you_mean
from ince.lora.layers.adapted import PREFIX

__all__ = [
    "Rows",
    "RowsOf",
    "all_rows",
    "prepare_layer_inputs_fn_language_modeling",
    "prepare_model_inputs_fn_language_modeling",
    "rows_by_layer",
]

RowsOf = Callable[[Any, Any, str], Tensor]
"""(layer's input, what the batch was prepared to, layer's name) to rows (N, D)."""
Rows = RowsOf | Mapping[str, RowsOf]
"""One such function, or some by the layer's name."""


def prepare_model_inputs_fn_language_modeling(model_input: Any, peft_config: Any) -> Tensor:
    """The positions of a batch that count, (B, L) bool: attended to, and with a label.

    Args:
        model_input: a mapping with ``input_ids``, maybe ``attention_mask`` and ``labels``.
        peft_config: whose ``eva_config`` says whether labels decide.

    Raises:
        DataError: the batch is something else.
    """
    if not isinstance(model_input, Mapping) or "input_ids" not in model_input:
        raise DataError(
            "the rows that count are found by the names in a batch, which this one does not have",
            got=type(model_input).__name__,
            expected="a mapping with input_ids",
            do="pass prepare_model_inputs_fn=None and prepare_layer_inputs_fn=None to use all "
            "rows, or functions of your own",
        )
    batch = cast("Mapping[str, Tensor]", model_input)
    mask = batch.get("attention_mask")
    mask = torch.ones_like(batch["input_ids"]) if mask is None else mask
    mask_BL = mask.bool()
    eva = peft_config.eva_config
    labels = batch.get("labels")
    if eva.use_label_mask and labels is not None:
        mask_BL = mask_BL & (labels != eva.label_mask_value)
    return mask_BL


def prepare_layer_inputs_fn_language_modeling(
    layer_input: Any, model_input: Any, layer_name: str
) -> Tensor:
    """The rows of ``layer_input`` that ``model_input``, a mask (B, L), marks: (N, D).

    A layer that sees tokens in another order, such as an expert, gives all it sees.
    """
    x = _first(layer_input)
    mask_BL = cast(Tensor, model_input)
    if x.shape[:-1] == mask_BL.shape:
        return x[mask_BL]
    rows = all_rows(x, model_input, layer_name)
    return rows[mask_BL.flatten()] if rows.shape[0] == mask_BL.numel() else rows


def all_rows(layer_input: Any, model_input: Any, layer_name: str) -> Tensor:  # noqa: ARG001
    """Every row, (N, D)."""
    x = _first(layer_input)
    return x.reshape(-1, x.shape[-1])


def rows_by_layer(given: Rows | None, layers: Iterable[str]) -> dict[str, RowsOf]:
    """A function for each layer; all rows count where there is none.

    Args:
        given: one for all layers, or some by name; None for none.
        layers: names in the base.

    Raises:
        AdapterError: a function is for another layer.
    """
    names = list(layers)
    if not isinstance(given, Mapping):
        return dict.fromkeys(names, given or all_rows)
    functions = {name.removeprefix(PREFIX): function for name, function in given.items()}
    strange = sorted(set(functions) - set(names))
    if strange:
        raise AdapterError(
            "there are functions for the inputs of layers that are not adapted",
            where="prepare_layer_inputs_fn",
            got=", ".join(strange[:5]),
            do=did_you_mean(strange[0], names),
        )
    return {name: functions.get(name, all_rows) for name in names}


def _first(layer_input: Any) -> Tensor:
    return layer_input if isinstance(layer_input, Tensor) else cast(Tensor, layer_input[0])
