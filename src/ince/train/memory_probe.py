"""The worst forwards and backwards that a run has ahead of it, found and tried before step 1.

Out of memory after forty minutes, on the first long batch, is what this is against. Which
batch is worst is known beforehand, since the rows of every step are: the one with the largest
rectangle, the one whose rows are longest (attention may take the square of their length), and
the one with the most targets (logits are the largest activation there is).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from ince.data import Row
from ince.train.memory import DeviceMemory, is_out_of_memory
from ince.train.micro_batch import shape_of
from ince.train.step import micro_batches
from ince.train.steps import StepPlan

__all__ = ["Probe", "probe", "worst_groups"]


@dataclass(frozen=True)
class Probe:
    """One forward and backward that was tried.

    Attributes:
        rows: of the micro-batch.
        peak_bytes: the most that was held meanwhile; where it did not fit, up to its end.
        fits: memory was not refused, and there was as much room as asked for.
    """

    rows: tuple[Row, ...]
    peak_bytes: int
    fits: bool

    @property
    def num_targets(self) -> int:
        """Tokens that carry loss."""
        return sum(example.num_targets for row in self.rows for example in row.examples)

    def to_dict(self) -> dict[str, object]:
        """For the run record."""
        num_rows, length = shape_of(self.rows)
        return {
            "num_rows": num_rows,
            "length": length,
            "num_targets": self.num_targets,
            "peak_bytes": self.peak_bytes,
            "fits": self.fits,
        }

    def __str__(self) -> str:
        num_rows, length = shape_of(self.rows)
        rows = "1 row" if num_rows == 1 else f"{num_rows} rows"
        return f"{rows} of {length:,} tokens, {self.num_targets:,} of them learnt"


def worst_groups(plan: StepPlan, micro_batch_tokens: int | None) -> list[list[Row]]:
    """The micro-batches of all steps that may take the most memory; three of them at most."""
    num_targets: dict[int, int] = {}

    def targets_of(group: Sequence[Row]) -> int:
        total = 0
        for row in group:
            for example in row.examples:
                if id(example) not in num_targets:
                    num_targets[id(example)] = example.num_targets
                total += num_targets[id(example)]
        return total

    best: dict[str, tuple[tuple[int, ...], list[Row]]] = {}
    for step in range(plan.num_steps):
        for group in micro_batches(plan.rows(step), micro_batch_tokens):
            num_rows, length = shape_of(group)
            rectangle, targets = num_rows * length, targets_of(group)
            if targets == 0:
                continue  # nothing to go backward from
            # Ties go to the group that is worse in the other ways, so that one may be all three.
            keys = {
                "rectangle": (rectangle, rectangle * length, targets),
                "square": (rectangle * length, rectangle, targets),
                "targets": (targets, rectangle, rectangle * length),
            }
            for name, key in keys.items():
                if name not in best or key > best[name][0]:
                    best[name] = key, group
    return list({id(group): group for _, group in best.values()}.values())


def probe(
    rows: Sequence[Row],
    *,
    model: nn.Module,
    memory: DeviceMemory,
    rehearse: Callable[[Sequence[Row]], None],
    spare_bytes: int = 0,
) -> Probe:
    """Do a forward and backward of `rows` and measure it; nothing else remains of it.

    Args:
        rows: of one micro-batch.
        model: that `rehearse` runs.
        memory: whose limit ends it.
        rehearse: forward and backward, without a trace.
        spare_bytes: that must be left below the limit, for what is yet to come.
    """
    with memory.peak() as peak:
        refused = _refused(rows, model, memory, rehearse)
    memory.release()
    limit = memory.limit_bytes
    above = limit is not None and peak.num_bytes + spare_bytes > limit
    return Probe(tuple(rows), peak.num_bytes, fits=not (refused or above))


def _refused(
    rows: Sequence[Row],
    model: nn.Module,
    memory: DeviceMemory,
    rehearse: Callable[[Sequence[Row]], None],
) -> bool:
    # A function of its own: the error's traceback holds the activations until it is left.
    try:
        with memory.stop_at_limit(model):
            rehearse(rows)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return True
    return False
