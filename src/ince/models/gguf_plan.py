"""How the tensors of a transformers model are made of those of a GGUF file.

llama.cpp has names of its own, and its converters change some tensors on the way: Llama's
query and key rows are reordered for another form of rotary embedding, Gemma's norms have one
added, experts are stacked in two tensors where transformers has one. A plan says for every
tensor of the model which tensors of the file it comes from and how it is turned back. All is
known from the header; nothing is read until `PlannedTensor.read`.

Only architectures in `ARCHITECTURES` are planned, each compared in the tests with what
transformers makes of the same file. For all others there is transformers itself.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ince.errors import ModelReferenceError
from ince.formats.gguf import GGUFFile
from ince.formats.gguf.blocks import EXPANDED_TYPES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ARCHITECTURES", "TensorPlan", "plan_tensors", "why_unplanned"]

Make = Callable[[GGUFFile, "TensorPlan", torch.dtype], Tensor]

_GATE_UP = re.compile(r"(?:.*\.)?layers\.(\d+)\.mlp\.experts\.gate_up_proj")


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the model.

    Attributes:
        sources: tensors of the file that it is made of.
        shape: in the model.
        make: reads it, given the dtype of the result.
    """

    sources: tuple[str, ...]
    shape: tuple[int, ...]
    make: Make

    @property
    def is_plain(self) -> bool:
        """Whether its numbers are those of its one source, in the same order."""
        return self.make is _plain

    @property
    def num_elements(self) -> int:
        """Of the tensor."""
        return math.prod(self.shape)

    def read(self, file: GGUFFile, dtype: torch.dtype) -> Tensor:
        """The tensor in `dtype`, contiguous, in memory of its own."""
        return self.make(file, self, dtype)


def why_unplanned(file: GGUFFile, model: "PreTrainedModel") -> str | None:
    """What keeps this kind of file from being read tensor by tensor, or None."""
    architecture = str(file.metadata.get("general.architecture"))
    if architecture not in ARCHITECTURES:
        return f"its architecture is {architecture}"
    if any(getattr(model, f"_keep_in_fp32_modules{end}", None) for end in ("", "_strict")):
        return f"parts of {type(model).__name__} stay in float32"
    types = dict.fromkeys(entry.type for entry in file.entries.values())
    strange = [t.name for t in types if t.dtype is None and t.name not in EXPANDED_TYPES]
    return f"it has tensors of type {', '.join(strange)}" if strange else None


def plan_tensors(file: GGUFFile, model: "PreTrainedModel") -> dict[str, TensorPlan]:
    """Name in the model → how to read it, for every tensor that is not tied to another.

    Args:
        file: the GGUF file.
        model: of the class that its config names; on the meta device, no weight is looked at.

    Raises:
        ModelReferenceError: a kind of file that is not planned (`why_unplanned`), or one whose
            tensors are not exactly those of the model.
    """
    if reason := why_unplanned(file, model):
        raise ModelReferenceError(
            f"the GGUF file cannot be read tensor by tensor: {reason}",
            where=file.path,
            expected=f"{', '.join(ARCHITECTURES)}, as F32, F16, BF16, {', '.join(EXPANDED_TYPES)}",
            do="use the safetensors form of the model",
        )
    architecture = str(file.metadata["general.architecture"])
    rule = ARCHITECTURES[architecture]
    config = model.config.get_text_config()
    find = _name_finder(architecture, config.num_hidden_layers)
    tied: Mapping[str, str] = model.all_tied_weights_keys
    plans: dict[str, TensorPlan] = {}
    for name, wanted in model.state_dict().items():
        if name in tied:
            continue
        sources = find(name, file)
        if not sources or any(source not in file.entries for source in sources):
            raise _mismatch(file, f"{name!r} is not in it", list(sources))
        first, *more = sources
        make = _gate_up if more else rule(first, config)
        plan = TensorPlan(sources, tuple(wanted.shape), make)
        _check_shape(file, name, plan)
        plans[name] = plan
    used = [source for plan in plans.values() for source in plan.sources]
    if len(used) != len(set(used)):
        twice = [source for source in set(used) if used.count(source) > 1]
        raise _mismatch(file, "a tensor has two places in the model", twice)
    left = sorted(file.entries.keys() - set(used) - {n for n in file.entries if _is_table(n)})
    if left:
        raise _mismatch(file, f"{len(left)} of its tensors have no place in the model", left)
    return plans


def _is_table(name: str) -> bool:
    """Whether this is a table of rotary embeddings, which are computed and not loaded."""
    return any(table in name for table in ("rope_freqs", "rope_factors_", "attn_rot_embd"))


def _mismatch(file: GGUFFile, what: str, got: list[str]) -> ModelReferenceError:
    return ModelReferenceError(
        f"the GGUF file is not the model that it says it is: {what}",
        where=file.path,
        got=", ".join(got) or None,
        expected="exactly the tensors of transformers' model of the same architecture",
        do="use the safetensors form of the model",
    )


def _name_finder(architecture: str, num_layers: int) -> Callable[[str, GGUFFile], tuple[str, ...]]:
    """What finds the file's names for a name of the model; none when there is no such name."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    number = next((k for k, name in MODEL_ARCH_NAMES.items() if name == architecture), None)
    names = None if number is None else get_tensor_name_map(number, num_layers)

    def find(name: str, file: GGUFFile) -> tuple[str, ...]:
        if names is None:
            return ()
        if match := _GATE_UP.fullmatch(name):
            layer = match[1]
            return (f"blk.{layer}.ffn_gate_exps.weight", f"blk.{layer}.ffn_up_exps.weight")
        stem, dot, leaf = name.rpartition(".")
        if leaf not in ("weight", "bias"):
            stem, dot, leaf = name, "", ""
        # Some files were converted from the model without its head, whose names are shorter.
        parts = stem.split(".")
        for start in range(min(3, len(parts))):
            if found := names.get_name(".".join(parts[start:])):
                stored = f"{found}{dot}{leaf}"
                return (stored if stored in file.entries or dot else f"{stored}.weight",)
        return ()

    return find


def _check_shape(file: GGUFFile, name: str, plan: TensorPlan) -> None:
    shapes = [file.entries[source].shape for source in plan.sources]
    if plan.make is _gate_up:
        experts, rows, columns = plan.shape if len(plan.shape) == 3 else (0, 0, 0)
        fits = rows % 2 == 0 and shapes == [(experts, rows // 2, columns)] * 2
    elif plan.make is _transposed:
        fits = shapes == [plan.shape[::-1]]
    else:  # dimensions of one come and go
        fits = [n for n in shapes[0] if n != 1] == [n for n in plan.shape if n != 1]
    if not fits:
        raise ModelReferenceError(
            f"the weights do not fit the file's own description: {name} has another shape",
            where=file.path,
            got=" and ".join(str(list(shape)) for shape in shapes),
            expected=list(plan.shape),
            do="the file is damaged or was written wrongly; get it again",
        )


def _plain(file: GGUFFile, plan: TensorPlan, dtype: torch.dtype) -> Tensor:
    return file.tensor(plan.sources[0], dtype).view(plan.shape)


def _minus_one(file: GGUFFile, plan: TensorPlan, dtype: torch.dtype) -> Tensor:
    return file.tensor(plan.sources[0], torch.float32).sub_(1).to(dtype).view(plan.shape)


def _log_negative(file: GGUFFile, plan: TensorPlan, dtype: torch.dtype) -> Tensor:
    # numpy's logarithm, as transformers takes it; the last bit of torch's differs.
    logs = np.log(-file.tensor(plan.sources[0], torch.float32).numpy())
    return torch.from_numpy(logs).to(dtype).view(plan.shape)


def _transposed(file: GGUFFile, plan: TensorPlan, dtype: torch.dtype) -> Tensor:
    return file.tensor(plan.sources[0], dtype).t().contiguous()


def _gate_up(file: GGUFFile, plan: TensorPlan, dtype: torch.dtype) -> Tensor:
    """Experts' gate rows, then their up rows, from two tensors, an expert at a time."""
    out_EIH = torch.empty(plan.shape, dtype=dtype)
    half = plan.shape[1] // 2
    for expert in range(plan.shape[0]):
        for start, source in zip((0, half), plan.sources, strict=True):
            rows = file.rows(source, expert, expert + 1, dtype)
            out_EIH[expert, start : start + half] = rows[0]
    return out_EIH


def _unpaired(file: GGUFFile, plan: TensorPlan, dtype: torch.dtype, *, num_heads: int) -> Tensor:
    """Rows of each head: pairs (2i, 2i+1) of llama.cpp go to (i, i + half) of transformers."""
    w = file.tensor(plan.sources[0], dtype)
    return w.view(num_heads, -1, 2, *w.shape[1:]).transpose(1, 2).reshape(plan.shape)


def _bloom_qkv(file: GGUFFile, plan: TensorPlan, dtype: torch.dtype, *, num_heads: int) -> Tensor:
    """All queries, all keys, all values go to query, key and value of each head."""
    w = file.tensor(plan.sources[0], dtype)
    return w.view(3, num_heads, -1, *w.shape[1:]).transpose(0, 1).reshape(plan.shape)


def _as_is(_name: str, _config: Any) -> Make:
    return _plain


def _llama(name: str, config: Any) -> Make:
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    parts = name.split(".")
    kind = parts[2] if len(parts) > 2 else ""
    return partial(_unpaired, num_heads=heads[kind]) if kind in heads else _plain


def _offset_norms(name: str, _config: Any) -> Make:
    return _minus_one if name.endswith("norm.weight") else _plain


def _gpt2(name: str, _config: Any) -> Make:
    turned = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    return _transposed if name.endswith(turned) else _plain


def _bloom(name: str, config: Any) -> Make:
    return partial(_bloom_qkv, num_heads=config.n_head) if ".attn_qkv." in name else _plain


def _mamba(name: str, _config: Any) -> Make:
    return _log_negative if name.endswith(".ssm_a") else _plain


# Name of the architecture in the file → the way back for a tensor of it.
ARCHITECTURES: dict[str, Callable[[str, Any], Make]] = {
    "llama": _llama,
    "qwen2": _as_is,
    "qwen2moe": _as_is,
    "qwen3": _as_is,
    "qwen3moe": _as_is,
    "phi3": _as_is,
    "starcoder2": _as_is,
    "stablelm": _as_is,
    "gemma2": _offset_norms,
    "gemma3": _offset_norms,
    "nemotron": _offset_norms,
    "gpt2": _gpt2,
    "bloom": _bloom,
    "mamba": _mamba,
}
