"""`Shape`: what of a model decides bytes and time, and its parameters counted by formula.

A shape is the numbers of a config, without weights and without torch. Covered are dense decoders:
attention of grouped heads, a feed-forward block that is gated or not, RMS or layer norms, learned
positions or none. Mixtures of experts are another formula, and no shape here.

The counts equal those of the model's class on the meta device to the parameter.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ATTENTION", "Matrix", "ParameterCounts", "Shape"]

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
"""Linear layers of an attention block, as transformers calls them."""

_GATED = ("gate_proj", "up_proj", "down_proj")
_PLAIN = ("up_proj", "down_proj")


@dataclass(frozen=True)
class Matrix:
    """A linear layer: (out, in), and whether it has a bias."""

    name: str
    num_out: int
    num_in: int
    has_bias: bool = False

    @property
    def num_weights(self) -> int:
        """Without the bias."""
        return self.num_out * self.num_in


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters by component; a tied head counts as nothing of its own."""

    linear: int
    biases: int
    embedding: int
    head: int
    positions: int
    norms: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.linear + self.biases + self.embedding + self.head + self.positions + self.norms


@dataclass(frozen=True)
class Shape:
    """A dense decoder.

    Attributes:
        name: as it is shown.
        hidden, mlp: widths of the residual stream and of the feed-forward block.
        num_layers, num_heads, num_kv_heads, head_dim: of attention.
        vocabulary: rows of the embedding.
        is_tied: the head shares the embedding's weight.
        is_gated: three matrices in the feed-forward block, else two.
        qkv_bias, o_bias, mlp_bias: which linear layers have one.
        norms_per_layer: of the residual stream.
        has_qk_norm: a norm over each head of queries and keys.
        norm_bias: norms have a bias beside their weight, as layer norms do.
        num_positions: rows of a learned embedding of positions.
        max_length: longest row that the model was made for; None when it is not known.
        hub_id: where its weights are; None when it is none of the hub's.
    """

    name: str
    hidden: int
    mlp: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary: int
    is_tied: bool = False
    is_gated: bool = True
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    norms_per_layer: int = 2
    has_qk_norm: bool = False
    norm_bias: bool = False
    num_positions: int = 0
    max_length: int | None = None
    hub_id: str | None = None

    @property
    def q_width(self) -> int:
        """Of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Of all key heads together; values as many."""
        return self.num_kv_heads * self.head_dim

    @property
    def mlp_names(self) -> tuple[str, ...]:
        """Linear layers of the feed-forward block."""
        return _GATED if self.is_gated else _PLAIN

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Linear layers of one layer of the model, in its order."""
        q, kv, width = self.q_width, self.kv_width, self.hidden
        inner = [Matrix(name, self.mlp, width, self.mlp_bias) for name in self.mlp_names[:-1]]
        return (
            Matrix("q_proj", q, width, self.qkv_bias),
            Matrix("k_proj", kv, width, self.qkv_bias),
            Matrix("v_proj", kv, width, self.qkv_bias),
            Matrix("o_proj", width, q, self.o_bias),
            *inner,
            Matrix("down_proj", width, self.mlp, self.mlp_bias),
        )

    @property
    def linear_names(self) -> tuple[str, ...]:
        """What ``all-linear`` means."""
        return tuple(matrix.name for matrix in self.matrices)

    @property
    def layer_weights(self) -> int:
        """Weights of the linear layers of one layer."""
        return sum(matrix.num_weights for matrix in self.matrices)

    @property
    def counts(self) -> ParameterCounts:
        """Parameters by component."""
        per_norm = 2 if self.norm_bias else 1
        norms = (self.num_layers * self.norms_per_layer + 1) * self.hidden * per_norm
        if self.has_qk_norm:
            norms += self.num_layers * 2 * self.head_dim
        biases = sum(matrix.num_out for matrix in self.matrices if matrix.has_bias)
        embedding = self.vocabulary * self.hidden
        return ParameterCounts(
            linear=self.num_layers * self.layer_weights,
            biases=self.num_layers * biases,
            embedding=embedding,
            head=0 if self.is_tied else embedding,
            positions=self.num_positions * self.hidden,
            norms=norms,
        )

    def lora_parameters(self, r: int, targets: Sequence[str] | None = None) -> int:
        """Parameters of adapters of rank `r` on these linear layers of every layer; None: all.

        An adapter of an (out, in) layer has r · (out + in).
        """
        names = self.linear_names if targets is None else targets
        return self.num_layers * sum(
            r * (matrix.num_out + matrix.num_in) for matrix in self.matrices if matrix.name in names
        )
