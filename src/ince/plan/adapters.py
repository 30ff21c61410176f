"""Which linear layers have an adapter, of which rank, and what learns beside its factors.

Of a model whose layers are alike only three things matter: how many parameters there are, how they
are cut into tensors, and which layer is the first that learns, for below it nothing goes backward.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ince.plan.shape import Matrix, Shape

__all__ = ["AdaptedMatrix", "Factors", "factors_of"]


@dataclass(frozen=True)
class AdaptedMatrix:
    """A linear layer that has an adapter.

    Attributes:
        name: of the matrix, as in `Shape.matrices`.
        layer: number of the layer that it is in.
        r: its own rank; None: the one that all have.
    """

    name: str
    layer: int
    r: int | None = None


@dataclass(frozen=True)
class Factors:
    """A and B of one linear layer: (r, in) and (out, r)."""

    matrix: Matrix
    layer: int
    r: int

    @property
    def sizes(self) -> tuple[int, int]:
        """Entries of A and of B."""
        return self.r * self.matrix.num_in, self.r * self.matrix.num_out


def factors_of(
    shape: Shape, adapted: tuple[AdaptedMatrix, ...] | None, r: int
) -> Iterator[Factors]:
    """Those of every linear layer, or of the ones that are `adapted`."""
    matrices = {matrix.name: matrix for matrix in shape.matrices}
    if adapted is None:
        for layer in range(shape.num_layers):
            for matrix in shape.matrices:
                yield Factors(matrix, layer, r)
        return
    for each in adapted:
        yield Factors(matrices[each.name], each.layer, r if each.r is None else each.r)
