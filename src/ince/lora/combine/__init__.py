"""Combining and compressing adapters: mathematics on matrices, without layers or models.

`check_combination` judges what is asked for before anything is computed, `combine_layer`
makes one layer of the new adapter. `reduce_rank` and `plan_ranks` make an adapter smaller.
`thin_svd` and what stands on it read the spectrum of B A without forming it.
"""

from ince.lora.combine.check import KINDS, Combination, Kind, check_combination
from ince.lora.combine.layer import combine_layer
from ince.lora.combine.part import Part
from ince.lora.combine.rank import Reduced, plan_ranks, rank_for_energy, reduce_rank
from ince.lora.combine.spectrum import (
    ThinSvd,
    left_vectors,
    right_vectors,
    singular_values,
    thin_svd,
)

__all__ = [
    "KINDS",
    "Combination",
    "Kind",
    "Part",
    "Reduced",
    "ThinSvd",
    "check_combination",
    "combine_layer",
    "left_vectors",
    "plan_ranks",
    "rank_for_energy",
    "reduce_rank",
    "right_vectors",
    "singular_values",
    "thin_svd",
]
