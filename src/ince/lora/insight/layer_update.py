"""`LayerUpdate`: what an adapter adds to one weight, as its file has it.

Of whatever method: two thin matrices, and vectors that scale them. They become `Factors` when
they are asked for, so that a large adapter is not copied as a whole.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from ince.errors import AdapterError
from ince.lora.factors import Factors

__all__ = ["BaseShape", "Form", "LayerUpdate", "Updates", "check_rank", "shape_mismatch"]

Form = Literal["linear", "embedding", "convolution", "expert"]
# The shape of a module's weight as the base stores it, where there is a base.
BaseShape = Callable[[str], tuple[int, ...] | None]


@dataclass(frozen=True)
class LayerUpdate:
    """``ΔW = s · diag(o) B diag(e) A``, of a weight that is read as a matrix (O, D).

    Attributes:
        name: of the layer, without PEFT's prefix; an expert's number in brackets.
        module: of the base, that it belongs to.
        form: how its weight is read as a matrix.
        a_RD, b_OR: A (R, D) and B (O, R), of any float dtype.
        s: scale of the update.
        num_parameters: in the file, that are this layer's alone.
        rank_scale: e (R,): E of AdaLoRA, d of VeRA; or None for ones.
        output_scale: o (O,): b of VeRA; or None for ones.
        bias: (O,) of B, or None.
        magnitude: DoRA's m, (O,), or None. It is told of, and is no part of ΔW.
        expert: its number, of `form` "expert".
    """

    name: str
    module: str
    form: Form
    a_RD: Tensor
    b_OR: Tensor
    s: float
    num_parameters: int
    rank_scale: Tensor | None = None
    output_scale: Tensor | None = None
    bias: Tensor | None = None
    magnitude: Tensor | None = None
    expert: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(O, D)."""
        return self.b_OR.shape[0], self.a_RD.shape[1]

    @property
    def rank(self) -> int:
        """R."""
        return self.a_RD.shape[0]

    def factors(self) -> Factors:
        """The update as plain A and B."""
        a_RD, b_OR = self.a_RD, self.b_OR
        if self.rank_scale is not None:
            a_RD = a_RD.double() * self.rank_scale.double().unsqueeze(1)
        if self.output_scale is not None:
            b_OR = b_OR.double() * self.output_scale.double().unsqueeze(1)
        return Factors(a_RD, b_OR, self.s, bias=self.bias)


@dataclass
class Updates:
    """The updates of an adapter, and what is to be said about them.

    Attributes:
        layers: in the order of the model's depth.
        unread: parameters of layers whose update cannot be known, by layer.
        notes: why, and the like.
    """

    layers: list[LayerUpdate] = field(default_factory=list)
    unread: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def shape_mismatch(name: str, where: Path, got: str, expected: str) -> AdapterError:
    """The error of tensors whose shapes contradict each other."""
    return AdapterError(
        "the shapes of the adapter's tensors contradict each other",
        where=f"{where}: {name}",
        got=got,
        expected=expected,
        do="save or download the adapter again",
    )


def check_rank(name: str, r: int, configured: int, where: Path) -> None:
    """Refuse a file whose rank is not its config's: its scale would be another too.

    Raises:
        AdapterError: `r` is not `configured`.
    """
    if r != configured:
        raise AdapterError(
            "the adapter's tensors have another rank than its config",
            where=f"{where}: {name}",
            got=f"rank {r}",
            expected=f"rank {configured}, by r and rank_pattern",
            do="the two files are of different adapters; save or download them again",
        )
