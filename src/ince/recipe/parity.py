"""The proof at the end of a run: the merged model says what the adapter says.

Two comparisons, both computed in float32:

- the adapter against a merge into float32: equal but for the order of sums, or merging is
  wrong;
- the adapter against the merged 16-bit model, the one that is written and served: what
  rounding each merged weight to 16 bits costs.
"""

from typing import TYPE_CHECKING

import torch

from ince.heap import give_back
from ince.publish import (
    EXACT_LIMIT,
    ROUNDED_LIMIT,
    assert_parity,
    compare_logits,
    float32_copy,
)

if TYPE_CHECKING:
    from ince.recipe.session import Session

__all__ = ["EXACT_PROOF", "ROUNDED_PROOF", "prove_merge"]

EXACT_PROOF = "merged model equals adapter"
ROUNDED_PROOF = "merged model in 16 bits"
_NUM_EXAMPLES = 16


def prove_merge(session: "Session") -> None:
    """Merge in memory, compare logits on held-out rows, and record both proofs.

    Raises:
        ProofError: a difference is above its limit; the record says so, too.
    """
    split = session.eval_split or session.train_split
    probes = [torch.tensor([example.input_ids]) for example in split.examples[:_NUM_EXAMPLES]]
    give_back()
    adapter = float32_copy(session.model)
    for name, dtype, limit in (
        (EXACT_PROOF, torch.float32, EXACT_LIMIT),
        (ROUNDED_PROOF, None, ROUNDED_LIMIT),
    ):
        merged = session.model.merge_and_unload(dtype=dtype).float()
        parity = compare_logits(adapter, merged, probes)
        del merged  # one merged model in memory at a time
        give_back()
        session.record.add_proof(
            name,
            value=parity.max_abs_logit_diff,
            limit=limit,
            unit="largest difference of a logit",
            holds=parity.max_abs_logit_diff <= limit,
            detail=f"in float32, the likeliest token agrees at {parity.argmax_agreement:.2%} of "
            f"{parity.num_positions} positions; mean KL divergence {parity.kl_mean:.1e} nats",
        )
        assert_parity(parity, limit)
