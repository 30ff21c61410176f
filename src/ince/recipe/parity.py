"""The proof at the end of a run: the merged 16-bit model says what the adapter says."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ince.publish import Parity, assert_parity, compare_logits

if TYPE_CHECKING:
    from ince.recipe.session import Session

__all__ = ["MERGE_LIMIT", "prove_merge"]

MERGE_LIMIT = 1.0
"""Largest difference of a logit that passes. Merging rounds each weight to 16 bits once more,
and 16-bit activations round differently behind it; a wrong scale or a lost layer moves
logits by ten and more."""

_NUM_EXAMPLES = 16


def _probes(session: "Session") -> Iterator[Tensor]:
    split = session.eval_split or session.train_split
    for example in split.examples[:_NUM_EXAMPLES]:
        yield torch.tensor([example.input_ids])


def prove_merge(session: "Session") -> Parity:
    """Merge in memory, compare logits on held-out rows, and record the proof.

    Raises:
        ProofError: the two differ by more than `MERGE_LIMIT`; the record says so, too.
    """
    merged = session.model.merge_and_unload()
    parity = compare_logits(session.model, merged, _probes(session))
    session.record.add_proof(
        "merged model equals adapter",
        value=parity.max_abs_logit_diff,
        limit=MERGE_LIMIT,
        unit="largest difference of a logit",
        holds=parity.max_abs_logit_diff <= MERGE_LIMIT,
        detail=f"the likeliest token agrees at {parity.argmax_agreement:.2%} of "
        f"{parity.num_positions} positions; mean KL divergence {parity.kl_mean:.2e} nats",
    )
    assert_parity(parity, MERGE_LIMIT)
    return parity
