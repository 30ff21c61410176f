"""Write a standalone model folder: an adapter merged into its base, or a model as it is.

The folder is what transformers writes: `config.json`, weights in safetensors (in shards of at
most 5 GB, with an index, when there is more), generation config, tokenizer and chat template.
Weights are computed as they are written, one at a time, so that memory holds the base and no
second model. It needs neither ince nor PEFT to be read.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ince.errors import OutputError
from ince.files import replace_folder
from ince.formats.writer import PlannedTensor, write_safetensors
from ince.lora.merge import MergedTensor, make_config_plain, merged_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["merge_to_folder", "model_to_folder"]

_SHARD_BYTES = 5 * 10**9


def merge_to_folder(
    peft_model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase | None",
    out: str | Path,
    dtype: torch.dtype = torch.bfloat16,
    *,
    shard_bytes: int = _SHARD_BYTES,
) -> Path:
    """Write the merged model to `out`, whole; the model in memory is left as it is.

    Args:
        peft_model: a `PeftModel` over a transformers model.
        tokenizer: written beside, with its chat template; None writes none.
        out: a folder that does not exist or is empty.
        dtype: of the weights.
        shard_bytes: most bytes of weights in one file.

    Returns:
        `out`, for ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        OutputError: `out` holds something.
        AdapterError: a merged weight is not finite.
        DiskFullError: nothing half-written is left.
    """
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise OutputError(
            "the output folder is not empty",
            where=out,
            expected="a new or empty folder",
            do="choose another folder, or remove this one",
        )
    base = cast(Any, peft_model).get_base_model()
    return model_to_folder(base, tokenizer, out, dtype, shard_bytes=shard_bytes)


def model_to_folder(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase | None",
    out: str | Path,
    dtype: torch.dtype,
    *,
    shard_bytes: int = _SHARD_BYTES,
) -> Path:
    """Write a transformers model to `out`, whole, in place of what stood there.

    Args:
        model: adapted or not; what is adapted is written merged.
        tokenizer, dtype, shard_bytes: as of `merge_to_folder`.

    Raises:
        AdapterError: a merged weight is not finite.
        DiskFullError: what stood there stands there.
    """
    out = Path(out)
    shards = _shards(list(merged_tensors(model, dtype)), shard_bytes)
    with replace_folder(out) as folder:
        _write_config(model, dtype, folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        _write_shards(shards, folder)
    return out


def _write_config(base: Any, dtype: torch.dtype, folder: Path) -> None:
    config = copy.deepcopy(base.config)
    make_config_plain(config, base, dtype)
    config.architectures = [type(base).__name__]
    (folder / "config.json").write_text(config.to_json_string(use_diff=True), encoding="utf-8")
    generation = getattr(base, "generation_config", None)
    if generation is not None:
        text = generation.to_json_string(use_diff=True)
        (folder / "generation_config.json").write_text(text, encoding="utf-8")


def _shards(tensors: Sequence[MergedTensor], shard_bytes: int) -> list[list[MergedTensor]]:
    """Cut in order, each part as full as fits; a larger tensor has a part of its own."""
    shards: list[list[MergedTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        size = _planned(tensor).num_bytes
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
    return shards


def _planned(tensor: MergedTensor) -> PlannedTensor:
    return PlannedTensor(tensor.name, tensor.shape, tensor.dtype)


def _write_shards(shards: Sequence[Sequence[MergedTensor]], folder: Path) -> None:
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [
            f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)
        ]
    for name, shard in zip(names, shards, strict=True):
        plan = [_planned(tensor) for tensor in shard]
        write_safetensors(folder / name, plan, (tensor.compute() for tensor in shard))
    if len(shards) > 1:
        places = {
            tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard
        }
        num_bytes = sum(_planned(tensor).num_bytes for shard in shards for tensor in shard)
        index = {"metadata": {"total_size": num_bytes}, "weight_map": places}
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
