"""EVA's redistribution of ranks: where the inputs of a layer are richer, its rank is higher."""

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["distribute_ranks"]


def distribute_ranks(shares: Mapping[str, Tensor], budget: int) -> dict[str, int]:
    """Give `budget` ranks, one at a time, to the component that explains most.

    Args:
        shares: by layer, (K,) the share of variance that each component explains, falling.
            K is the highest rank that the layer may get.
        budget: sum of the ranks.

    Returns:
        The rank of every layer, 0 included. Equal shares go to the lower component first,
        then in the order of the layers.

    Source: EVA, arXiv:2410.07170, section 3.3.
    """
    names = list(shares)
    entries = [
        (-float(share), component, layer)
        for layer, name in enumerate(names)
        # Rounding may leave a later share a hair above an earlier one.
        for component, share in enumerate(torch.cummin(shares[name], dim=0).values.tolist())
    ]
    ranks = dict.fromkeys(names, 0)
    for _, _, layer in sorted(entries)[:budget]:
        ranks[names[layer]] += 1
    return ranks
