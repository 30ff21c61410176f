"""From the names in an adapter's file to layers and their parts.

    base_model.model.<module>.lora_A.weight      A and B of a layer; of AdaLoRA without .weight
    ….lora_embedding_A, ….lora_E, ….lora_magnitude_vector, ….vera_lambda_b, ….lora_B.bias
    base_model.vera_A, base_model.vera_B         shared by all layers of VeRA
    ….token_adapter.trainable_tokens_delta       rows of an embedding, as they are after training
    ….<module of modules_to_save>.weight         a whole module, as it is after training

A name that is none of these is listed, and stops nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from ince.lora.insight.settings import AdapterSettings

__all__ = ["SortedTensors", "TrainedTensor", "sort_tensors"]

Part = Literal["A", "B", "E", "bias", "magnitude", "lambda_b", "lambda_d"]
TrainedKind = Literal["module", "token rows", "bias"]

_PREFIXES = ("base_model.model.", "base_model.")

# Ends of names, the longest first where one ends in another.
_PARTS: Mapping[str, tuple[Part, bool]] = {
    ".lora_A.weight": ("A", False),
    ".lora_B.weight": ("B", False),
    ".lora_B.bias": ("bias", False),
    ".lora_A": ("A", False),
    ".lora_B": ("B", False),
    ".lora_E": ("E", False),
    ".lora_embedding_A": ("A", True),
    ".lora_embedding_B": ("B", True),
    ".lora_magnitude_vector.weight": ("magnitude", False),
    ".lora_magnitude_vector": ("magnitude", False),
    ".vera_lambda_b": ("lambda_b", False),
    ".vera_lambda_d": ("lambda_d", False),
}
_SHARED = {"vera_A": "A", "vera_B": "B"}
_TOKEN_ROWS = ".token_adapter.trainable_tokens_delta"
_COPY = ".base_layer.weight"
# Saved whole by PEFT when the vocabulary has grown, whether or not they are named.
_EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "word_embeddings", "shared", "embed_out")


@dataclass(frozen=True)
class TrainedTensor:
    """What was trained whole, beside the low-rank updates.

    Attributes:
        name: without PEFT's prefix.
        kind: of a module in modules_to_save, rows of tokens, or a bias.
        tensor: its values after training (not a difference).
    """

    name: str
    kind: TrainedKind
    tensor: Tensor


@dataclass
class SortedTensors:
    """The tensors of a file by what they are.

    Attributes:
        parts: of each layer that has any, by module.
        embeddings: modules whose A and B are an embedding's.
        shared: VeRA's projections, "A" and "B".
        trained: whole tensors.
        copies: weights of the base that lie in the file too, untrained.
        unknown: names that are none of these.
    """

    parts: dict[str, dict[Part, Tensor]] = field(default_factory=dict)
    embeddings: set[str] = field(default_factory=set)
    shared: dict[str, Tensor] = field(default_factory=dict)
    trained: list[TrainedTensor] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def sort_tensors(tensors: Mapping[str, Tensor], settings: AdapterSettings) -> SortedTensors:
    """Sort the tensors of an adapter's file."""
    found = SortedTensors()
    for key in sorted(tensors):
        _sort_one(key, tensors[key], settings, found)
    return found


def _sort_one(key: str, tensor: Tensor, settings: AdapterSettings, found: SortedTensors) -> None:
    prefix = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), None)
    if prefix is None:
        found.unknown.append(key)
        return
    name = key.removeprefix(prefix)
    if name in _SHARED:
        found.shared[_SHARED[name]] = tensor
        return
    for end, (part, is_embedding) in _PARTS.items():
        if name.endswith(end) and len(name) > len(end):
            module = name.removesuffix(end)
            found.parts.setdefault(module, {})[part] = tensor
            if is_embedding:
                found.embeddings.add(module)
            return
    if name.endswith(_TOKEN_ROWS):
        found.trained.append(TrainedTensor(name.removesuffix(_TOKEN_ROWS), "token rows", tensor))
    elif name.endswith(_COPY):
        found.copies.append(name)
    elif _is_saved(name, settings):
        found.trained.append(TrainedTensor(name, "module", tensor))
    elif name.endswith(".bias") and settings.bias != "none":
        found.trained.append(TrainedTensor(name.replace(".base_layer", ""), "bias", tensor))
    else:
        found.unknown.append(key)


def _is_saved(name: str, settings: AdapterSettings) -> bool:
    parts = name.split(".")[:-1]
    if parts and parts[-1] in _EMBEDDINGS:
        return True
    module = "." + ".".join(parts) + "."
    return any(f".{saved}." in module for saved in settings.modules_to_save)
