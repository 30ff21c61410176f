"""Which way a mixed product takes: a rule of cost over its sizes.

The ways are those of `ince.lora.mixed.product`. None is quickest everywhere: a stack pays for the
padding of unequal shares and ranks, loops pay for each turn, a gather for moving the rows. The
constants are of a CPU; what they balance is the same elsewhere.
"""

from typing import Literal

from ince.lora.mixed.routing import RowPlan

__all__ = ["MAX_STACKED_ROWS", "Way", "choose_way"]

Way = Literal["stacked", "runs", "sorted"]

# Measured on a CPU (AVX-512), in the time that a float32 row takes with one value of a matrix,
# 0.04 ns.
_READ = 6  # one value of a matrix from memory
_MOVE = 5  # one value of the batch gathered or put back
_CALL = 400_000  # an adapter's turn in a loop, whatever its size
# A row in 16 bits costs half in a batched product, but a loop's turn is dearer: its products of
# few rows are slow, or it casts.
_ROW_16 = 0.5
_CALL_16 = 2 * _CALL
# Above, a stack would be made for one step, and saves little of it.
MAX_STACKED_ROWS = 256


def choose_way(
    plan: RowPlan,
    ranks: tuple[int, ...],
    num_in: int,
    num_out: int,
    *,
    itemsize: int,
    may_stack: bool = True,
) -> Way:
    """The quickest way, by what each multiplies, reads, moves and calls.

    n rows times a matrix of rank r cost n · r for each of the layer's D + O columns, and
    `_READ` · r for the matrix's way from memory; a turn in a loop costs `_CALL`.

    Args:
        plan: of the rows.
        ranks: of its adapters.
        num_in: D. num_out: O.
        itemsize: bytes of an activation.
        may_stack: whether a stack is there or can be kept.
    """
    key = (ranks, num_in, num_out, itemsize, may_stack)
    way = plan.ways.get(key)
    if way is None:
        way = plan.ways[key] = _quickest(plan, *key)
    return way


def _quickest(
    plan: RowPlan, ranks: tuple[int, ...], num_in: int, num_out: int, itemsize: int, may_stack: bool
) -> Way:
    columns = num_in + num_out
    row, call = (1.0, _CALL) if itemsize >= 4 else (_ROW_16, _CALL_16)
    moved = _MOVE * plan.num_adapted * (columns + num_out)
    sorted_cost = runs_cost = 0.0
    for (_, start, stop), r in zip(plan.segments, ranks, strict=True):
        sorted_cost += columns * r * (_READ + stop - start) + call
    for adapter, start, stop in plan.runs:
        if adapter is not None:
            runs_cost += columns * ranks[adapter] * (_READ + stop - start) + call
    sorted_cost += moved
    way: Way = "runs" if runs_cost <= sorted_cost else "sorted"
    if not may_stack or plan.num_rows > MAX_STACKED_ROWS:
        return way
    # Also where nothing is gathered: the choice shall not hang on the order of an earlier batch.
    stacked_cost = columns * len(ranks) * max(ranks) * (_READ + row * plan.width) + moved
    return "stacked" if stacked_cost <= min(runs_cost, sorted_cost) else way
