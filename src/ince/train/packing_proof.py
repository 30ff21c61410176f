"""Packed equals single, on the model, the kernels and the machine at hand: shown before step 1.

Examples in one row must not see each other. Whether they do is decided by the attention
implementation, and what is wrong there trains without a complaint, to a loss that is a little
too high. So a real row of the run is read as it is in training, with all its examples, and
some of them are read alone; the logits must agree at every target.

Rounding alone makes a difference, which depends on the type and on the shapes of the products.
It is measured on the same examples, read together as rows of one batch, where they cannot see
each other. Examples that do see each other differ by far more: by half of the logits' spread
and above, on the packaged model.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ince.data import IGNORED, Batch, Row, attention_mask, collate
from ince.errors import ProofError
from ince.models import attention_inputs, logits_only_at
from ince.record import RunRecord
from ince.train.steps import StepPlan

__all__ = ["PACKING_PROOF", "PackingProof", "compare_packed", "prove_packing", "row_to_read"]

PACKING_PROOF = "packed rows equal single rows"

# Relative differences that rounding may make in any case; more than was seen on deep models.
_FLOORS = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_OTHER_FLOOR = 1e-9  # float64
_TIMES_NOISE = 4.0
# What is larger is no rounding, however much of it there is.
_CEILING = 0.4

# Examples of the row that are read alone, and steps that are searched for a row.
_NUM_ALONE = 4
_NUM_STEPS = 32


@dataclass(frozen=True)
class PackingProof:
    """How far the examples of a packed row are from themselves alone.

    Attributes:
        difference: of the example that is farthest: the norm of the difference of its logits,
            over the norm of its logits alone, their means taken off. NaN counts as infinite.
        source: of that example.
        noise: the same between the examples alone and as rows of one batch.
        limit: that `difference` may reach.
        num_documents: in the row.
        num_shared: of its segments, that several of them share.
        num_targets: at which logits were compared.
    """

    difference: float
    source: str
    noise: float
    limit: float
    num_documents: int
    num_shared: int
    num_targets: int

    @property
    def holds(self) -> bool:
        """Whether packing changes nothing."""
        return self.difference <= self.limit

    @property
    def detail(self) -> str:
        """What was compared."""
        shared = f", {self.num_shared} beginnings shared" if self.num_shared else ""
        return (
            f"{self.num_targets} targets in a row of {self.num_documents} examples{shared}; "
            f"rounding alone makes {self.noise:.1e}"
        )


def row_to_read(plan: StepPlan) -> Row | None:
    """A short row with several examples, with a shared beginning where there is one.

    None when the first steps have no such row.
    """
    rows = [
        row
        for step in range(min(plan.num_steps, _NUM_STEPS))
        for row in plan.rows(step)
        if len(row.examples) > 1 and any(example.num_targets for example in row.examples)
    ]
    return min(rows, key=lambda row: (_num_shared(row) == 0, row.num_tokens), default=None)


def _num_shared(row: Row) -> int:
    return sum(segment.shared for segment in row.segments)


def compare_packed(model: nn.Module, row: Row, *, pad_id: int) -> PackingProof:
    """Read `row` packed and its shortest examples alone, with gradients as in training.

    Args:
        model: in evaluation mode, so that nothing is dropped.
        row: of several examples.
        pad_id: token that fills short rows.
    """
    device = next(model.parameters()).device
    chosen = sorted(
        (i for i, example in enumerate(row.examples) if example.num_targets),
        key=lambda i: row.examples[i].num_tokens,
    )[:_NUM_ALONE]
    singles = [Row((row.examples[i],)) for i in chosen]
    packed = _logits(model, collate([row], pad_id, pad_to_multiple=64).to(device))
    batched = _logits(model, collate(singles, pad_id, pad_to_multiple=64).to(device))
    differences: dict[int, float] = {}
    noise, floor = 0.0, _OTHER_FLOOR
    for place, (index, single) in enumerate(zip(chosen, singles, strict=True), start=1):
        alone = _logits(model, collate([single], pad_id, pad_to_multiple=1).to(device))[1]
        differences[index] = _difference(packed[index + 1], alone)
        noise = max(noise, _difference(batched[place], alone))
        floor = _FLOORS.get(alone.dtype, _OTHER_FLOOR)
    farthest = max(differences, key=differences.__getitem__)
    return PackingProof(
        difference=differences[farthest],
        source=row.examples[farthest].source,
        noise=noise,
        limit=min(_CEILING, max(floor, _TIMES_NOISE * noise)),
        num_documents=len(row.examples),
        num_shared=_num_shared(row),
        num_targets=sum(row.examples[i].num_targets for i in chosen),
    )


def _logits(model: nn.Module, batch: Batch) -> dict[int, Tensor]:
    """Logits before each target, by the number of its document in the batch, from 1."""
    rows_N, before_N = (batch.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    # Attention is chosen by whether there are gradients: it is that of training to be looked at.
    with torch.enable_grad(), logits_only_at(model, rows_N, before_N):
        logits = model(
            input_ids=batch.input_ids,
            **attention_inputs(model, attention_mask(batch), batch.position_ids),
            use_cache=False,
        ).logits[0]
    documents = batch.document_ids[rows_N, before_N + 1]
    found = logits.detach()
    return {int(number): found[documents == number] for number in documents.unique()}


def _difference(ours: Tensor, alone: Tensor) -> float:
    """Relative to the spread of the logits alone; infinite where it is not a number."""
    centered = alone.double() - alone.double().mean(dim=-1, keepdim=True)
    difference = ours.double() - alone.double()
    difference = difference - difference.mean(dim=-1, keepdim=True)
    spread = max(float(centered.norm()), 1e-30)
    value = float(difference.norm()) / spread
    return value if math.isfinite(value) else math.inf


def prove_packing(
    model: nn.Module, plan: StepPlan, *, pad_id: int, record: RunRecord | None = None
) -> PackingProof | None:
    """Compare a row of `plan`; None when no row of its first steps has several examples.

    None, too, when the examples alone have logits that are not finite.

    Args:
        model: that is trained; put into evaluation mode.
        plan: of the run.
        pad_id: token that fills short rows.
        record: gets the proof.

    Raises:
        ProofError: the logits differ by more than rounding does; the record says so, too.
    """
    row = row_to_read(plan)
    if row is None:
        return None
    model.eval()
    proof = compare_packed(model, row, pad_id=pad_id)
    if not math.isfinite(proof.noise):
        return None  # the model gives no numbers alone either: the loss will say so
    if record is not None:
        record.add_proof(
            PACKING_PROOF,
            value=proof.difference,
            limit=proof.limit,
            unit="relative difference of logits",
            holds=proof.holds,
            detail=proof.detail,
        )
    if not proof.holds:
        raise ProofError(
            "examples packed into one row do not give the logits that they give alone",
            where=proof.source,
            got=f"a relative difference of {proof.difference:.2g}; {proof.detail}",
            expected=f"at most {proof.limit:.2g}",
            do="turn packing off (data.packing: false): with this model, or on this machine, "
            "examples see each other",
        )
    return proof
