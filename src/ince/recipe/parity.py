"""The proof at the end of a run: the merged model says what the adapter says.

Two comparisons, both computed in float32:

- the adapter against a merge into float32: equal but for the order of sums, or merging is
  wrong;
- the adapter against the merged 16-bit model, the one that is written and served: what
  rounding each merged weight to 16 bits costs.

Of a model that was trained whole there is nothing to merge. What was saved is read back and
compared with what was trained: a weight that was lost, or tied to another, shows here.
"""

from typing import TYPE_CHECKING

import torch

from ince.heap import give_back
from ince.models import load_model
from ince.publish import (
    EXACT_LIMIT,
    ROUNDED_LIMIT,
    Parity,
    assert_parity,
    compare_logits,
    float32_copy,
)
from ince.recipe.tuned import AdapterTuned, FullTuned

if TYPE_CHECKING:
    from ince.recipe.session import Session

__all__ = ["EXACT_PROOF", "RELOAD_PROOF", "ROUNDED_PROOF", "prove_merge", "prove_result"]

EXACT_PROOF = "merged model equals adapter"
ROUNDED_PROOF = "merged model in 16 bits"
RELOAD_PROOF = "saved model equals trained model"
_NUM_EXAMPLES = 16


def prove_result(session: "Session") -> None:
    """The proof that goes with what was trained.

    Raises:
        ProofError: it does not hold; the record says so, too.
    """
    tuned = session.tuned
    if isinstance(tuned, FullTuned):
        with session.record.phase("reload check"):
            prove_reload(session, tuned)
    else:
        with session.record.phase("merge check"):
            prove_merge(session)


def prove_reload(session: "Session", tuned: FullTuned) -> None:
    """Load what was saved, compare logits on held-out rows, and record the proof.

    Raises:
        ProofError: a difference is above the limit.
    """
    tuned.forget_base()
    loaded, _ = load_model(
        session.folder / tuned.section,
        dtype=tuned.plain.dtype,
        device=session.recipe.model.device,
    )
    parity = compare_logits(tuned.model, loaded, _probes(session))
    _note(session, RELOAD_PROOF, parity, EXACT_LIMIT, f"in {tuned.facts['dtype']}")
    assert_parity(parity, EXACT_LIMIT)


def prove_merge(session: "Session") -> None:
    """Merge in memory, compare logits on held-out rows, and record both proofs.

    Raises:
        ProofError: a difference is above its limit; the record says so, too.
    """
    tuned = session.tuned
    assert isinstance(tuned, AdapterTuned)
    probes = _probes(session)
    give_back()
    adapter = float32_copy(tuned.model)
    for name, dtype, limit in (
        (EXACT_PROOF, torch.float32, EXACT_LIMIT),
        (ROUNDED_PROOF, None, ROUNDED_LIMIT),
    ):
        merged = tuned.peft.merge_and_unload(dtype=dtype).float()
        parity = compare_logits(adapter, merged, probes)
        del merged  # one merged model in memory at a time
        give_back()
        _note(session, name, parity, limit, "in float32")
        assert_parity(parity, limit)


def _probes(session: "Session") -> list[torch.Tensor]:
    split = session.eval_split or session.train_split
    return [torch.tensor([example.input_ids]) for example in split.examples[:_NUM_EXAMPLES]]


def _note(session: "Session", name: str, parity: Parity, limit: float, how: str) -> None:
    session.record.add_proof(
        name,
        value=parity.max_abs_logit_diff,
        limit=limit,
        unit="largest difference of a logit",
        holds=parity.max_abs_logit_diff <= limit,
        detail=f"{how}, the likeliest token agrees at {parity.argmax_agreement:.2%} of "
        f"{parity.num_positions} positions; mean KL divergence {parity.kl_mean:.1e} nats",
    )
