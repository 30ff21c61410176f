"""Bytes of activations: what a layer keeps for its backward pass, and what it works in.

The formulas follow ince's own forwards (`ince.models.fused`, `ince.lora.fused`), tensor by tensor;
with ``train.fused: false`` those of transformers' modules under autograd. Of N tokens, D the width,
F that of the feed-forward block, Q and K those of queries and keys, S the ranks of the adapters:

    kept of a layer, fused   x and its norm, twice (4 D), q, k, v as attention reads them (Q + 2 K),
                             attention's output (Q) and its logarithms, gate and up (2 F), and the
                             (N, r) product of each adapter (S)
    recomputed               the layer's input (D); and one layer at a time the above
    worked in, backward      of the feed-forward block: the gradients of its output, of its input
                             and of their product (2 D + F), and weights expanded from four bits,
                             two at a time

The last layer's backward is when most is held: every layer's activations are still there.
"""

from dataclasses import dataclass

from ince.plan.adapters import Factors, factors_of
from ince.plan.setup import Setup
from ince.plan.shape import Shape

__all__ = ["LayerBytes", "layer_bytes", "logit_bytes", "logit_chunk"]

# As `ince.train.linear_cross_entropy` cuts them.
_CHUNK_BYTES = 32 * 2**20
_LEAST_ROWS = 16


@dataclass(frozen=True)
class LayerBytes:
    """Of one layer.

    Attributes:
        kept: from its forward to its backward.
        input: what remains of it where it is recomputed.
        work: activations' gradients and products while its backward runs.
        expanded: weights in floats meanwhile.
    """

    kept: int
    input: int
    work: int
    expanded: int


def layer_bytes(shape: Shape, setup: Setup) -> LayerBytes:
    """What one layer takes for the micro-batch of `setup`."""
    tokens, size = setup.num_tokens, setup.value_bytes
    width, mlp, q, kv = shape.hidden, shape.mlp, shape.q_width, shape.kv_width
    is_full = setup.method == "full"
    ranks = dropped = factors = 0
    if not is_full:
        layer = _fullest_layer(shape, setup)
        ranks = sum(each.r for each in layer)
        # Which inputs stayed, a byte each.
        dropped = sum(each.matrix.num_in for each in layer) if setup.has_dropout else 0
        factors = sum(sum(each.sizes) for each in layer) * size
    numbers = 4 * width + 2 * q + 2 * kv + ranks
    # Norms of queries and keys, and those behind a block, keep their inputs.
    numbers += (q + kv) * shape.has_qk_norm + width * max(0, shape.norms_per_layer - 2)
    inner = len(shape.mlp_names) - 1
    is_one_function = setup.is_fused and not is_full and shape.is_gated
    numbers += inner * mlp if is_one_function else (2 * inner) * mlp
    statistics = 4 * (shape.norms_per_layer + shape.num_heads)
    # Factors of the adapters as the products read them.
    kept = tokens * (numbers * size + statistics + dropped) + factors
    work = tokens * (2 * width + (mlp if is_one_function else 2 * mlp)) * size
    expanded = 0
    if setup.method == "qlora" and not setup.is_expanded:
        largest = max(matrix.num_weights for matrix in shape.matrices) * size
        # Of gate and up one is expanded while the other is still there.
        expanded = (2 if is_one_function else 1) * largest
    return LayerBytes(kept, tokens * width * size, work, expanded)


def _fullest_layer(shape: Shape, setup: Setup) -> list[Factors]:
    """The adapters of the layer that has most of them, since any may be the one that matters."""
    if setup.adapted is None:
        return [Factors(matrix, 0, setup.r) for matrix in shape.matrices]
    by_layer: dict[int, list[Factors]] = {}
    for each in factors_of(shape, setup.adapted, setup.r):
        by_layer.setdefault(each.layer, []).append(each)
    return max(by_layer.values(), key=lambda layer: sum(each.r for each in layer), default=[])


def logit_chunk(shape: Shape, setup: Setup) -> int:
    """Of the logits that are there at once where the head is frozen."""
    row = shape.vocabulary * setup.value_bytes
    return min(max(_LEAST_ROWS, _CHUNK_BYTES // row), setup.num_learnt) * row


def logit_bytes(shape: Shape, setup: Setup) -> tuple[int, int]:
    """Of the loss: (while it is computed, what of that stays until the backward pass begins).

    Some rows of logits at a time, the hidden states of the targets, and their gradient.
    """
    size = setup.value_bytes
    hidden = setup.num_learnt * shape.hidden * size
    if setup.method == "full":
        # The head learns, so the model makes the logits: of the loss autograd holds three in
        # float32 at once, probabilities and two gradients.
        logits = setup.num_learnt * shape.vocabulary * 4
        return 3 * logits + hidden, logits + hidden
    chunk = logit_chunk(shape, setup)
    head = shape.vocabulary * shape.hidden * size if setup.quantize_head else 0
    return chunk + head + 2 * hidden, hidden
