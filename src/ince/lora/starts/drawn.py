"""Starts that are drawn at random and know nothing of the weight.

Numbers come from torch's global generator, on the CPU and in float32 whatever the base is, and
in the order in which PEFT draws them: a seed gives the same adapter on every device, and the
same as PEFT. That order includes numbers that PEFT draws and drops, since it lets each layer
initialize itself first; see `as_layers`.

Shapes are those of the parameters, so that a convolution's kernel counts in the fan-in.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ince.errors import AdapterError
from ince.lora.starts.start import Start

__all__ = ["as_layers", "embedding", "gaussian", "kaiming", "orthogonal", "uniform"]

# Deviation of the entries of orthogonal factors.
_ORTHOGONAL_SCALE = 10.0

_Shape = Sequence[int]


def as_layers(shape_a: _Shape, shape_b: _Shape, *, bias: bool = False) -> Start:
    """What A and B are when they are built as linear or convolution layers: both uniform.

    Args:
        shape_a: (R, D), or a convolution's (R, in, kernel…).
        shape_b: (O, R), or a convolution's.
        bias: whether B has one.
    """
    a, b = _kaiming(shape_a), _kaiming(shape_b)
    bias_O = None
    if bias:
        bound = 1 / math.sqrt(math.prod(shape_b[1:]))
        bias_O = torch.empty(shape_b[0], dtype=torch.float32, device="cpu").uniform_(-bound, bound)
    return Start(a, b, bias_O=bias_O)


def uniform(shape_a: _Shape, shape_b: _Shape, *, bias: bool = False) -> Start:
    """A and B uniform, a bias too: no identity, for tests (``init_lora_weights=False``)."""
    return as_layers(shape_a, shape_b, bias=bias)


def kaiming(shape_a: _Shape, shape_b: _Shape, *, bias: bool = False) -> Start:
    """A uniform in ±1/√fan-in, B zero (``init_lora_weights=True``).

    Source: He et al., arXiv:1502.01852, with a=√5, as loralib has it.
    """
    drawn = as_layers(shape_a, shape_b, bias=bias)
    return Start(_kaiming(shape_a), torch.zeros_like(drawn.b_OR))


def gaussian(shape_a: _Shape, shape_b: _Shape, *, r: int, bias: bool = False) -> Start:
    """A normal of deviation 1/r, B zero.

    `r` is the rank of one update, which several experts stacked in A exceed.

    Source: LoRA, arXiv:2106.09685, section 4.1; the deviation is diffusers'.
    """
    drawn = as_layers(shape_a, shape_b, bias=bias)
    a = torch.empty_like(drawn.a_RD).normal_(std=1 / r)
    return Start(a, torch.zeros_like(drawn.b_OR))


def orthogonal(
    shape_a: tuple[int, int], shape_b: tuple[int, int], *, bias: bool = False, name: str = "weight"
) -> Start:
    """A and B both random, yet B A = 0: they use orthogonal halves of the rank.

    The rows of a random orthogonal (R, R) matrix are dealt out in turn, Q₁ to A and Q₂ to B:
    A = (X Q₁)ᵀ / 10 and B = Y Q₂ / 10, so that B A = Y Q₂Q₁ᵀ Xᵀ / 100 = 0.

    Raises:
        AdapterError: an odd rank has no two halves.

    Source: https://datta0.github.io/posts/rethink-lora-init/
    """
    (r, num_inputs), (num_outputs, _) = shape_a, shape_b
    if r % 2 or r < 2:
        raise AdapterError(
            "an orthogonal start gives half of the rank to A and half to B",
            where=name,
            got=f"rank {r}",
            expected="an even rank",
            do=f"set r to {r + 1}, also where rank_pattern does",
        )
    as_layers(shape_a, shape_b, bias=bias)
    q_RR = torch.linalg.qr(_normal(r, r)).Q
    a_DR = _normal(num_inputs, r // 2) @ q_RR[0::2]
    b_OR = _normal(r // 2, num_outputs).t() @ q_RR[1::2]
    return Start((a_DR.t() / _ORTHOGONAL_SCALE).contiguous(), (b_OR / _ORTHOGONAL_SCALE))


def embedding(shape_a: tuple[int, int], shape_b: tuple[int, int], *, identity: bool) -> Start:
    """Factors of an embedding: A zero and B normal, or both normal where it is no identity.

    A's columns are looked up, so it is A that must be zero for most tokens to keep their rows.

    Source: loralib's embedding.
    """
    a, b = _normal(*shape_a), _normal(*shape_b)
    if identity:
        return Start(torch.zeros_like(a), _normal(*shape_b))
    return Start(a, b)


def _kaiming(shape: _Shape) -> Tensor:
    empty = torch.empty(tuple(shape), dtype=torch.float32, device="cpu")
    return nn.init.kaiming_uniform_(empty, a=math.sqrt(5))


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float32, device="cpu")
