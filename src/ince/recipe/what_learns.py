"""From a recipe's section `lora` to what learns: which layers, of which ranks, what beside them.

Names, patterns, layer numbers and what is left out are read by `ince.lora` itself, on a skeleton of
the model: its modules by name and size on the meta device, without a config or a weight. So a plan
counts what the run will train, and refuses what the run would refuse.
"""

import re
from math import prod

import torch
from torch import nn

from ince.lora.placement.find import find_places
from ince.lora.placement.places import LayerPlace
from ince.lora.placement.saved_modules import SavedPlace
from ince.lora.placement.specs import value_of
from ince.lora.placement.tied_layers import TiedLayerPlace
from ince.plan import Shape
from ince.plan.adapters import AdaptedMatrix
from ince.recipe.schema import LoraSection

__all__ = ["what_learns"]

# Of the fields that say where an adapter is and of what; the others do not matter to a plan.
_DECIDING = (
    "target_modules",
    "exclude_modules",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "use_dora",
    "lora_bias",
    "bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
)
_FACTORS = ("lora_A.weight", "lora_B.weight")


def what_learns(
    lora: LoraSection, shape: Shape
) -> tuple[tuple[AdaptedMatrix, ...] | None, tuple[int, ...], bool]:
    """(linear layers with an adapter, sizes of other tensors that learn, any below all layers).

    Of an adapter on all linear layers alike the first is None, and no skeleton is made.

    Raises:
        ConfigError: the section does not fit such a model.
    """
    plain = LoraSection()
    if all(getattr(lora, name) == getattr(plain, name) for name in _DECIDING):
        return None, (), False
    places, _ = find_places(Decoder(shape), lora.to_lora_config())
    adapted: list[AdaptedMatrix] = []
    others: list[int] = []
    learns_below = False
    for place in places:
        if isinstance(place, TiedLayerPlace) or getattr(place, "tied_to", None) is not None:
            continue  # it uses another's
        found = re.search(r"\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)$", place.name)
        shapes = place.shapes()
        if isinstance(place, LayerPlace) and found is not None:
            rank = value_of(lora.rank_pattern, place.name, 0)
            adapted.append(AdaptedMatrix(found[2], int(found[1]), rank or None))
            shapes = {name: size for name, size in shapes.items() if not name.endswith(_FACTORS)}
        elif not isinstance(place, SavedPlace) or found is None:
            learns_below |= "embed" in place.name
        others += map(prod, shapes.values())
    return tuple(adapted), tuple(others), learns_below


class Decoder(nn.Module):
    """Modules of a dense decoder, named as in transformers."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        with torch.device("meta"):
            embedding = nn.Embedding(shape.vocabulary, shape.hidden)
            layers = nn.ModuleList(_layer(shape) for _ in range(shape.num_layers))
            self.lm_head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)
            norm = nn.RMSNorm(shape.hidden)
        if shape.is_tied:
            self.lm_head.weight = embedding.weight
        parts = {"embed_tokens": embedding, "layers": layers, "norm": norm}
        self.model = nn.ModuleDict(parts)

    def get_input_embeddings(self) -> nn.Module:
        """As transformers' models have it."""
        return self.model["embed_tokens"]

    def get_output_embeddings(self) -> nn.Module:
        """As transformers' models have it."""
        return self.lm_head


def _layer(shape: Shape) -> nn.Module:
    layer = nn.Module()
    layer.self_attn, layer.mlp = nn.Module(), nn.Module()
    for matrix in shape.matrices:
        block = layer.mlp if matrix.name in shape.mlp_names else layer.self_attn
        linear = nn.Linear(matrix.num_in, matrix.num_out, bias=matrix.has_bias)
        block.add_module(matrix.name, linear)
    layer.input_layernorm = nn.RMSNorm(shape.hidden)
    layer.post_attention_layernorm = nn.RMSNorm(shape.hidden)
    return layer
