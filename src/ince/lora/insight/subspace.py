"""How much two adapters share: the subspace similarity φ of the LoRA paper.

    φ(1, 2, i, j) = ‖U₁ᵀ U₂‖²_F / min(i, j)

U₁ holds the first i directions of one adapter, U₂ the first j of another, each orthonormal.
φ is 1 when the smaller subspace lies in the larger, 0 when they are orthogonal. Two random
subspaces of d dimensions reach max(i, j) / d on average: a φ says nothing without it.

Source: LoRA, arXiv:2106.09685, section 7.2, equation 4 (the paper's `normalized subspace
similarity based on the Grassmann distance`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PhiGrid", "mean_grid", "phi_grid", "phi_table", "random_phi", "right_basis"]

# A grid is drawn and printed; beyond this many ranks a side, places are left out.
_MAX_PLACES = 32


def random_phi(i: int, j: int, d: int) -> float:
    """The mean of φ over two random subspaces of i and j in d dimensions: max(i, j) / d."""
    return max(i, j) / d


def right_basis(a_RD: Tensor) -> Tensor:
    """Right singular vectors of A as columns, (D, K), float64, strongest first.

    Directions that A does not have (a row of zeros, say) are left out.
    """
    _, values, vh = torch.linalg.svd(a_RD.detach().double(), full_matrices=False)
    floor = torch.finfo(torch.float32).eps * float(values[0]) if values.numel() else 0.0
    return vh[: int((values > floor).sum())].t()


def phi_table(one_DI: Tensor, other_DJ: Tensor) -> Tensor:
    """φ for every i and j at once: entry [i - 1, j - 1] of (I, J), float64.

    Args:
        one_DI, other_DJ: orthonormal columns, strongest first.
    """
    overlap = (one_DI.double().t() @ other_DJ.double()).square()
    sums = overlap.cumsum(0).cumsum(1)
    i = torch.arange(1, sums.shape[0] + 1, dtype=sums.dtype).unsqueeze(1)
    j = torch.arange(1, sums.shape[1] + 1, dtype=sums.dtype).unsqueeze(0)
    return sums / torch.minimum(i, j)


@dataclass(frozen=True)
class PhiGrid:
    """φ of one layer (or the mean of several) at places i, j.

    Attributes:
        i_places, j_places: ranks counted from 1; the last is the full rank.
        values: [place of i][place of j].
        random: what random subspaces reach at the same places.
        d: dimensions; of a mean, the least.
    """

    i_places: tuple[int, ...]
    j_places: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]
    random: tuple[tuple[float, ...], ...]
    d: int

    @property
    def full(self) -> float:
        """φ of the whole subspaces."""
        return self.values[-1][-1]

    @property
    def top(self) -> float:
        """φ of the strongest direction of each."""
        return self.values[0][0]

    @property
    def random_full(self) -> float:
        """What random subspaces of the same ranks reach."""
        return self.random[-1][-1]

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "d": self.d,
            "i": self.i_places,
            "j": self.j_places,
            "phi": [[round(value, 5) for value in row] for row in self.values],
            "top": self.top,
            "full": self.full,
            "random_full": self.random_full,
        }


def phi_grid(one_DI: Tensor, other_DJ: Tensor) -> PhiGrid | None:
    """φ at up to 32 x 32 places, the first and the last among them; None when a side is empty."""
    if one_DI.shape[1] == 0 or other_DJ.shape[1] == 0:
        return None
    table = phi_table(one_DI, other_DJ)
    i_places, j_places = _places(table.shape[0]), _places(table.shape[1])
    d = one_DI.shape[0]
    return PhiGrid(
        i_places,
        j_places,
        # Rounding may lift a φ of one above one.
        tuple(tuple(min(1.0, float(table[i - 1, j - 1])) for j in j_places) for i in i_places),
        tuple(tuple(random_phi(i, j, d) for j in j_places) for i in i_places),
        d,
    )


def _places(k: int) -> tuple[int, ...]:
    if k <= _MAX_PLACES:
        return tuple(range(1, k + 1))
    steps = (1 + (k - 1) * n / (_MAX_PLACES - 1) for n in range(_MAX_PLACES))
    return tuple(dict.fromkeys(round(step) for step in steps))


def mean_grid(grids: list[PhiGrid]) -> tuple[PhiGrid, int] | None:
    """The mean over grids of the ranks that most have, and how many those are."""
    by_ranks: dict[tuple[tuple[int, ...], tuple[int, ...]], list[PhiGrid]] = {}
    for grid in grids:
        by_ranks.setdefault((grid.i_places, grid.j_places), []).append(grid)
    if not by_ranks:
        return None
    most = max(by_ranks.values(), key=len)
    first = most[0]
    values = torch.tensor([grid.values for grid in most], dtype=torch.float64).mean(0).tolist()
    random = torch.tensor([grid.random for grid in most], dtype=torch.float64).mean(0).tolist()
    mean = PhiGrid(
        first.i_places,
        first.j_places,
        tuple(map(tuple, values)),
        tuple(map(tuple, random)),
        min(grid.d for grid in most),
    )
    return mean, len(most)
