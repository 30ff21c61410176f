"""`Setup`: how a model is to be trained, as far as bytes and time depend on it."""

from dataclasses import dataclass, replace
from typing import Literal

from ince.errors import InputError, did_you_mean
from ince.plan.adapters import AdaptedMatrix, factors_of
from ince.plan.shape import Shape

__all__ = ["ACTIVATIONS", "METHODS", "OPTIMIZERS", "Activations", "Method", "Setup"]

Method = Literal["full", "lora", "qlora"]
METHODS: tuple[Method, ...] = ("full", "lora", "qlora")

Activations = Literal["keep", "recompute", "offload"]
ACTIVATIONS: tuple[Activations, ...] = ("keep", "recompute", "offload")

OPTIMIZERS = (
    "adamw",
    "adamw_8bit",
    "paged_adamw",
    "paged_adamw_8bit",
    "lion",
    "lion_8bit",
    "paged_lion",
    "paged_lion_8bit",
)
"""Those of `ince.optim`, which this does without: it would load torch."""

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Setup:
    """A way to train.

    Attributes:
        method: every weight, an adapter over a base in floats, or one over a base in four bits.
        r: rank of the adapters.
        adapted: linear layers that have one; None: all of them.
        other_sizes: entries of each tensor that learns beside the factors: a magnitude, a bias, a
            module that is trained whole.
        learns_below: something of that is below all layers, such as an embedding.
        num_rows, length: of the largest micro-batch, padding included.
        num_targets: its tokens that carry loss; None: all.
        batch_tokens: between two updates; None: those of the micro-batch.
        value_bytes: of a number of the base and of the activations: 2 or 4.
        adapter_bytes: of a number of an adapter and of its gradient.
        gradient_bytes: of a gradient of full fine-tuning: ince sums them in float32.
        master_bytes: of a copy of every weight that full fine-tuning updates; 0 for none. None: as
            ince has it, in float32 beside weights in 16 bits.
        blocksize, double_quant, quantize_head: of four bits.
        is_expanded: the base in four bits is held in floats as well while training.
        activations: what is kept for the backward pass.
        is_fused: forwards in larger pieces (`train.fused`); else as transformers computes.
        optimizer: of `OPTIMIZERS`.
        device_moment_bytes: of a paged optimizer's moments, what may stay on the device; None: all.
        page_bytes: of a page of them.
        has_average: a moving average of what learns.
        has_dropout: adapters drop some of their inputs.
        num_devices: over which everything is sharded.
        on_cpu: products and allocator of a processor.
        has_compact_heap: large blocks lie apart from its heap (`train.compact_heap`).
    """

    method: Method = "qlora"
    r: int = 16
    adapted: tuple[AdaptedMatrix, ...] | None = None
    other_sizes: tuple[int, ...] = ()
    learns_below: bool = False
    num_rows: int = 1
    length: int = 2048
    num_targets: int | None = None
    batch_tokens: int | None = None
    value_bytes: int = 2
    adapter_bytes: int = 4
    gradient_bytes: int = _FLOAT_BYTES
    master_bytes: int | None = None
    blocksize: int = 64
    double_quant: bool = True
    quantize_head: bool = False
    is_expanded: bool = False
    activations: Activations = "keep"
    is_fused: bool = True
    optimizer: str = "adamw"
    device_moment_bytes: int | None = 0
    page_bytes: int = 4 * 2**20
    has_average: bool = False
    has_dropout: bool = False
    num_devices: int = 1
    on_cpu: bool = False
    has_compact_heap: bool = False

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise InputError(
                "the moments of this optimizer are not known to the plan",
                got=self.optimizer,
                expected=", ".join(OPTIMIZERS),
                do=did_you_mean(self.optimizer, OPTIMIZERS),
            )
        for name in ("r", "num_rows", "length", "num_devices"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1", where=name, got=getattr(self, name))

    @property
    def num_tokens(self) -> int:
        """In the micro-batch, padding included."""
        return self.num_rows * self.length

    @property
    def num_learnt(self) -> int:
        """Tokens that carry loss."""
        return self.num_tokens if self.num_targets is None else self.num_targets

    @property
    def is_paged(self) -> bool:
        """Moments may live below the device."""
        return self.optimizer.startswith("paged")

    @property
    def has_8bit_states(self) -> bool:
        """Moments take a byte each."""
        return self.optimizer.endswith("8bit")

    @property
    def num_moments(self) -> int:
        """Of a parameter that learns: one of Lion, two of AdamW."""
        return 1 if "lion" in self.optimizer else 2

    @property
    def master_copy_bytes(self) -> int:
        """Of a number of the copy that full fine-tuning updates; 0 where there is none."""
        if self.method != "full":
            return 0
        if self.master_bytes is not None:
            return self.master_bytes
        return _FLOAT_BYTES if self.value_bytes < _FLOAT_BYTES else 0

    def num_trainable(self, shape: Shape) -> int:
        """Parameters that learn."""
        if self.method == "full":
            return shape.counts.total
        if self.adapted is None:
            return shape.lora_parameters(self.r) + sum(self.other_sizes)
        factors = factors_of(shape, self.adapted, self.r)
        return sum(sum(each.sizes) for each in factors) + sum(self.other_sizes)

    @property
    def first_layer(self) -> int:
        """The lowest that something is sent back to: below it nothing is kept."""
        if self.method == "full" or self.adapted is None or self.learns_below:
            return 0
        return min((each.layer for each in self.adapted), default=0)

    def with_changes(self, **changes: object) -> "Setup":
        """Another, with these attributes."""
        return replace(self, **changes)
