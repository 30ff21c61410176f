"""Bytes of what is held for the whole run: weights by how they are stored, adapters, moments.

Four bits are counted as `ince.quant` stores them, part by part. To the byte; nothing is estimated
here.
"""

from collections import Counter
from dataclasses import dataclass

from ince.plan.adapters import factors_of
from ince.plan.setup import Setup
from ince.plan.shape import Matrix, Shape

__all__ = [
    "PackedBytes",
    "filed_bytes",
    "held_moments",
    "moment_bytes",
    "packed_bytes",
    "weight_parts",
]

_ABSMAX_BLOCK = 256
_OFFSET_BYTES = 4
_STATE_BLOCK = 256
# Smaller tensors keep their moments in float32.
_LEAST_8BIT = 4096
# Pages on their way, as in `ince.optim.pages.carrier` and `ince.optim.pages.stream`.
_STAGED_PAGES = 3
_BUFFERED_PAGES = 4
# Of a parameter's value before a step, as it is kept until the step is whole.
_OLD_BYTES = 4


@dataclass(frozen=True)
class PackedBytes:
    """Of a weight in four bits: its codes, its scales, and the one number beside them."""

    codes: int
    scales: int
    offset: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.codes + self.scales + self.offset


def packed_bytes(num_weights: int, blocksize: int, *, double_quant: bool) -> PackedBytes:
    """Of one weight, as `ince.quant.packed_module` has it."""
    codes = (num_weights + 1) // 2
    num_blocks = -(-num_weights // blocksize)
    if not double_quant:
        return PackedBytes(codes, 4 * num_blocks, 0)
    return PackedBytes(codes, num_blocks + 4 * -(-num_blocks // _ABSMAX_BLOCK), _OFFSET_BYTES)


def weight_parts(shape: Shape, setup: Setup) -> dict[str, int]:
    """Bytes of the base on all devices together, by how they are stored.

    Keys, where there are any: ``codes``, ``scales``, ``linear`` (in floats), ``expanded``,
    ``embedding``, ``head``, ``norms`` (biases and positions among them).
    """
    counts, size = shape.counts, setup.value_bytes
    parts: dict[str, int] = {}
    if setup.method == "qlora":
        packed = [_packed(matrix, setup) for matrix in shape.matrices] * shape.num_layers
        if setup.quantize_head and counts.head:
            packed.append(
                packed_bytes(counts.head, setup.blocksize, double_quant=setup.double_quant)
            )
        parts["codes"] = sum(each.codes for each in packed)
        parts["scales"] = sum(each.scales + each.offset for each in packed)
        if setup.is_expanded:
            parts["expanded"] = counts.linear * size
    else:
        parts["linear"] = counts.linear * size
    parts["embedding"] = counts.embedding * size
    is_packed_head = setup.method == "qlora" and setup.quantize_head
    parts["head"] = 0 if is_packed_head else counts.head * size
    parts["norms"] = (counts.norms + counts.biases + counts.positions) * size
    parts["master"] = counts.total * setup.master_copy_bytes
    return {name: num for name, num in parts.items() if num}


def _packed(matrix: Matrix, setup: Setup) -> PackedBytes:
    return packed_bytes(matrix.num_weights, setup.blocksize, double_quant=setup.double_quant)


def _sizes_that_learn(shape: Shape, setup: Setup) -> list[tuple[int, int]]:
    """(entries, how many such tensors), roughly as an optimizer sees them."""
    if setup.method == "full":
        counts = shape.counts
        sizes = [(matrix.num_weights, shape.num_layers) for matrix in shape.matrices]
        sizes += [(counts.embedding, 1), (counts.head, 1), (counts.positions, 1)]
        return [*sizes, (shape.hidden, (counts.norms + counts.biases) // shape.hidden)]
    found = Counter(setup.other_sizes)
    for each in factors_of(shape, setup.adapted, setup.r):
        found.update(each.sizes)
    return [*found.items()]


def moment_bytes(shape: Shape, setup: Setup) -> int:
    """Bytes of all moments, on whatever tier they are: two a parameter of AdamW, one of Lion.

    In float32 four each; in 8 bits one, and a scale for each block of 256, but for tensors of
    fewer than 4096 entries.
    """
    whole = 4 * setup.num_moments
    if not setup.has_8bit_states:
        return whole * setup.num_trainable(shape)
    total = 0
    for size, count in _sizes_that_learn(shape, setup):
        coded = setup.num_moments * (size + 4 * -(-size // _STATE_BLOCK))
        total += count * (whole * size if size < _LEAST_8BIT else coded)
    return total


def held_moments(shape: Shape, setup: Setup) -> tuple[int, int]:
    """(on the device, below it) of the moments of one device.

    Of an optimizer that pages as many as its budget says, and at least the pages on their way:
    on an accelerator three of a ring, on a processor four buffers between memory and file, in
    which a page has its parameters' old values with it (`ince.optim.pages`).
    """
    moments = -(-moment_bytes(shape, setup) // setup.num_devices)
    budget = setup.device_moment_bytes
    if not setup.is_paged or budget is None or moments <= budget:
        return moments, 0
    page = min(setup.page_bytes, moments)
    passing = _STAGED_PAGES * page
    if setup.on_cpu:
        learnt = -(-setup.num_trainable(shape) // setup.num_devices)
        passing = round(_BUFFERED_PAGES * page * (1 + 4 * learnt / max(1, moments)))
    here = max(budget, passing)
    # What passes through is in the file as well.
    return here, moments - max(0, here - passing)


def filed_bytes(shape: Shape, setup: Setup) -> int:
    """Bytes that an update on a processor reads from its file and writes to it.

    Of each page there the states are read and written, and the parameters' old values written.
    """
    if not setup.is_paged:
        return 0
    below = held_moments(shape, setup)[1]
    moments = moment_bytes(shape, setup)
    learnt = setup.num_trainable(shape) * below // max(1, moments)
    return 2 * below + _OLD_BYTES * learnt
