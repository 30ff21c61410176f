"""What the output layer reads, at chosen places, for a loss that makes the logits itself.

`logits_only_at` gives logits at chosen places; here the output layer is left out as well, so that
whoever computes the loss may go through the vocabulary in parts and never hold all logits.
Models do things with logits that their config may or may not name: so the first time a model is
seen, its logits are compared with what its output layer and soft-cap make, on a few tokens.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ince.models.target_logits import logits_only_at
from ince.quant import Linear4bit

__all__ = ["OutputHead", "hidden_only_at", "output_head"]

_PROBE_TOKENS = 4
_TOLERANCE = 0.02


@dataclass(frozen=True)
class OutputHead:
    """A frozen output layer: ``logits = cap(h Wᵀ + bias)``.

    Attributes:
        weight: gives W, (V, D), in the type of the hidden states.
        bias: (V,) or None.
        softcap: c of ``c · tanh(logits / c)`` as in Gemma 2; 0 where there is none.
    """

    weight: Callable[[], Tensor]
    bias: Tensor | None
    softcap: float


# None stands for a model whose logits are more than that.
_KNOWN: "WeakKeyDictionary[nn.Module, tuple[int, OutputHead | None]]" = WeakKeyDictionary()


def output_head(model: nn.Module) -> OutputHead | None:
    """The output layer of `model`, or None where its logits must be left to the model.

    That is so where the layer trains or is adapted, where somebody replaced its forward, and
    where the model does more with its logits than a soft-cap.

    Args:
        model: a causal language model of transformers, wrapped or not.
    """
    found: Any = model
    layer: nn.Module | None = found.get_output_embeddings()
    if layer is None or "forward" in vars(layer):
        return None
    known = _KNOWN.get(model)
    if known is None or known[0] != id(layer):
        known = (id(layer), _compared(model, layer))
        _KNOWN[model] = known
    return None if any(p.requires_grad for p in layer.parameters()) else known[1]


@contextlib.contextmanager
def hidden_only_at(model: Any, rows_N: Tensor, places_N: Tensor) -> Iterator[list[Tensor]]:
    """Inside, a forward leaves the hidden states of these places, (N, D), in the list given.

    The model's own logits then mean nothing.
    """
    layer: nn.Module = model.get_output_embeddings()
    captured: list[Tensor] = []

    def capture(hidden_BLD: Tensor) -> Tensor:
        captured.append(hidden_BLD[rows_N, places_N])
        return hidden_BLD.new_zeros(1, 1, 1)

    vars(layer)["forward"] = capture
    try:
        yield captured
    finally:
        del vars(layer)["forward"]


def _compared(model: nn.Module, layer: nn.Module) -> OutputHead | None:
    head = _read(model, layer)
    if head is None:
        return None
    caller: Any = model
    device = next(model.parameters()).device
    ids = torch.arange(_PROBE_TOKENS, device=device)[None]
    rows, places = torch.zeros_like(ids[0]), ids[0]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            with logits_only_at(model, rows, places):
                own = caller(input_ids=ids, use_cache=False).logits[0]
            with hidden_only_at(model, rows, places) as captured:
                caller(input_ids=ids, use_cache=False)
            ours = nn.functional.linear(captured[0], head.weight(), head.bias).float()
    finally:
        model.train(was_training)
    if head.softcap:
        ours = head.softcap * torch.tanh(ours / head.softcap)
    scale = float(own.float().abs().max()) + 1e-6
    is_same = float((own.float() - ours).abs().max()) <= _TOLERANCE * scale
    return head if is_same else None


def _read(model: nn.Module, layer: nn.Module) -> OutputHead | None:
    held: Any = layer
    if torch.float64 in {p.dtype for p in layer.parameters()}:
        return None  # no kernel for it: the definition is for comparisons
    if type(layer) is nn.Linear:
        weight: Callable[[], Tensor] = lambda: cast(Tensor, held.weight)  # noqa: E731
    elif type(layer) is Linear4bit:
        weight = held.frozen_weight
    else:
        return None
    config: Any = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    return OutputHead(weight, held.bias, float(softcap or 0.0))
