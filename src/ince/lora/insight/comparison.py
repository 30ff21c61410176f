"""Two adapters side by side: which directions they share, layer by layer.

Of each layer that both have in one shape: φ over right singular vectors of A, as in the LoRA
paper (arXiv:2106.09685, section 7.2), and of ΔW, which orders them by what the update does;
and the cosine of both ΔWs as vectors. What only one of them has is listed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ince.errors import AdapterError
from ince.lora.insight.inspection import AdapterInsight, LayerInsight
from ince.lora.insight.layer_kinds import kinds_of, layer_number
from ince.lora.insight.layer_update import LayerUpdate
from ince.lora.insight.spectrum import factor_svd, frobenius_inner, numerical_rank
from ince.lora.insight.subspace import PhiGrid, mean_grid, phi_grid, right_basis

__all__ = ["Comparison", "LayerPair", "compare_adapters"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class LayerPair:
    """One layer of both adapters.

    Attributes:
        name, kind, number: as in `LayerInsight`.
        ranks: R of each.
        phi_a: φ over right singular vectors of A.
        phi_delta: φ over right singular vectors of ΔW.
            Either is None where one side is zero.
        inner: ⟨ΔW₁, ΔW₂⟩.
        norms: ‖ΔW₁‖_F and ‖ΔW₂‖_F.
    """

    name: str
    kind: str
    number: int | None
    ranks: tuple[int, int]
    phi_a: PhiGrid | None
    phi_delta: PhiGrid | None
    inner: float
    norms: tuple[float, float]

    @property
    def cosine(self) -> float | None:
        """Of both ΔWs, or None where one is zero."""
        return _cosine(self.inner, self.norms[0] ** 2, self.norms[1] ** 2)

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "layer": self.number,
            "ranks": self.ranks,
            "cosine": self.cosine,
            "phi_a": None if self.phi_a is None else self.phi_a.to_dict(),
            "phi_delta": None if self.phi_delta is None else self.phi_delta.to_dict(),
        }


@dataclass(frozen=True)
class Comparison:
    """Two adapters over the layers that they share.

    Attributes:
        pairs: shared layers, in the order of the model's depth.
        only_first, only_second: layers that the other does not have.
        other_shape: layers of both whose weights have other shapes.
        bases: what each says that it was trained on.
    """

    pairs: tuple[LayerPair, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    other_shape: tuple[str, ...]
    bases: tuple[str | None, str | None]

    @property
    def cosine(self) -> float | None:
        """Of both whole updates, over the shared layers."""
        return pooled_cosine(self.pairs)

    def mean_phi(self, of: str) -> tuple[PhiGrid, int] | None:
        """The mean of φ over layers of the most frequent ranks, and how many those are.

        Args:
            of: ``"a"`` or ``"delta"``.
        """
        grids = [pair.phi_a if of == "a" else pair.phi_delta for pair in self.pairs]
        return mean_grid([grid for grid in grids if grid is not None])

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        means = {of: self.mean_phi(of) for of in ("a", "delta")}
        return {
            "bases": self.bases,
            "cosine": self.cosine,
            **{
                f"mean_phi_{of}": None
                if mean is None
                else {**mean[0].to_dict(), "num_layers": mean[1]}
                for of, mean in means.items()
            },
            "layers": [pair.to_dict() for pair in self.pairs],
            "only_first": self.only_first,
            "only_second": self.only_second,
            "other_shape": self.other_shape,
        }


def pooled_cosine(pairs: tuple[LayerPair, ...]) -> float | None:
    """The cosine of two updates over several layers, as one long vector each."""
    return _cosine(
        sum(pair.inner for pair in pairs),
        sum(pair.norms[0] ** 2 for pair in pairs),
        sum(pair.norms[1] ** 2 for pair in pairs),
    )


def _cosine(inner: float, one_squared: float, other_squared: float) -> float | None:
    size = (one_squared * other_squared) ** 0.5
    # Rounding may lift a cosine of one above one.
    return max(-1.0, min(1.0, inner / size)) if size > 0 else None


@torch.no_grad()
def compare_adapters(
    first: AdapterInsight, second: AdapterInsight, *, progress: Progress | None = None
) -> Comparison:
    """Compare two adapters over the layers that they share.

    Raises:
        AdapterError: they share none.
    """
    ones = {each.name: each for each in first.layers}
    others = {each.name: each for each in second.layers}
    shared = [name for name in ones if name in others]
    alike = [name for name in shared if ones[name].update.shape == others[name].update.shape]
    if not alike:
        raise _nothing_shared(first, second, shared)
    kinds = kinds_of(alike)
    pairs: list[LayerPair] = []
    for done, name in enumerate(alike):
        if progress is not None:
            progress("comparing layers", done, len(alike))
        pairs.append(_compare(ones[name], others[name], kinds[name]))
    return Comparison(
        pairs=tuple(pairs),
        only_first=tuple(name for name in ones if name not in others),
        only_second=tuple(name for name in others if name not in ones),
        other_shape=tuple(name for name in shared if name not in set(alike)),
        bases=(first.settings.base, second.settings.base),
    )


def _nothing_shared(
    first: AdapterInsight, second: AdapterInsight, shared: list[str]
) -> AdapterError:
    if shared:
        ones = {each.name: each.update for each in first.layers}
        others = {each.name: each.update for each in second.layers}
        name = shared[0]
        got = f"{name}: {ones[name].shape} and {others[name].shape}"
        what = "the two adapters are of bases of other shapes"
    else:
        examples = [each.layers[0].name if each.layers else "none" for each in (first, second)]
        got = f"layers such as {examples[0]} and {examples[1]}"
        what = "the two adapters have no layer in common"
    return AdapterError(
        what,
        where=f"{first.folder} and {second.folder}",
        got=got,
        expected="two adapters of one base, with a target in common",
        do="inspect each by itself",
    )


def _compare(one: LayerInsight, other: LayerInsight, kind: str) -> LayerPair:
    first, second = one.update.factors(), other.update.factors()
    return LayerPair(
        name=one.name,
        kind=kind,
        number=layer_number(one.name),
        ranks=(one.update.rank, other.update.rank),
        phi_a=phi_grid(right_basis(first.a_RD), right_basis(second.a_RD)),
        phi_delta=phi_grid(_directions(one.update), _directions(other.update)),
        inner=frobenius_inner(first, second),
        norms=(one.frobenius_norm, other.frobenius_norm),
    )


def _directions(update: LayerUpdate) -> torch.Tensor:
    """Right singular vectors of ΔW as columns, those that it has."""
    svd = factor_svd(update.factors())
    return svd.v_KD[: numerical_rank(svd.sigma_K)].mT
