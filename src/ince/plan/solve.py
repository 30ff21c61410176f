"""What would make a run fit, in what order, and what each costs in time.

Measures are tried from the cheapest on. Those that leave alone what is learnt come first: another
place or form for the optimizer's moments, recomputed activations, smaller forwards, a packed head.
Then those that change it: a base in four bits, a lower rank, a shorter context. What turns out not
to have been needed is taken back, so that the answer has no more than it must.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ince.errors import InputError
from ince.plan.devices import DEVICES, Device
from ince.plan.duration import flops_per_token
from ince.plan.memory import MemoryPlan, Overheads, plan_memory
from ince.plan.setup import Setup
from ince.plan.shape import Shape
from ince.plan.weights import moment_bytes
from ince.units import format_bytes

__all__ = [
    "Measure",
    "Solution",
    "largest_length",
    "largest_rows",
    "smallest_device",
    "smallest_number_of_devices",
    "solve",
]

# Of a transfer between a device and its host: an assumption, of PCIe 4.0 with 16 lanes.
_HOST_BYTES_PER_SECOND = 20e9
# Of one between a processor's memory and a file: an assumption, of a solid-state disk.
_FILE_BYTES_PER_SECOND = 1e9
# Computed meanwhile by an accelerator, and by a processor: assumptions.
_FLOPS, _CPU_FLOPS = 1e14, 1e11
# Tokens between two updates, over which the transfer of moments is spread: an assumption.
_TOKENS_OF_A_STEP = 16_384
_MAX_ROWS = 4096
_MAX_DEVICES = 1024


@dataclass(frozen=True)
class Measure:
    """Something that was turned on.

    Attributes:
        name: in words.
        keys: of a recipe, with their values; empty where a recipe has none for it.
        saved_bytes: at the peak, of what it was before.
        time_factor: seconds of a token over those before, estimated.
        changes_result: what is learnt is not the same.
    """

    name: str
    keys: tuple[tuple[str, object], ...]
    saved_bytes: int
    time_factor: float
    changes_result: bool


@dataclass(frozen=True)
class Solution:
    """A setup that fits.

    Attributes:
        setup: with everything that is needed.
        plan: its memory.
        measures: what was turned on, in order; none where the wish fitted as it was.
    """

    setup: Setup
    plan: MemoryPlan
    measures: tuple[Measure, ...]


@dataclass(frozen=True)
class _Option:
    name: Callable[[Setup], str]
    change: Callable[[Setup], Setup | None]
    keys: Callable[[Setup], tuple[tuple[str, object], ...]]
    changes_result: bool = False


def _paged(setup: Setup) -> Setup | None:
    if setup.is_paged and setup.device_moment_bytes == 0:
        return None
    name = setup.optimizer if setup.is_paged else f"paged_{setup.optimizer}"
    return setup.with_changes(optimizer=name, device_moment_bytes=0)


def _eight_bits(setup: Setup) -> Setup | None:
    if setup.has_8bit_states:
        return None
    return setup.with_changes(optimizer=f"{setup.optimizer}_8bit")


def _recompute(setup: Setup) -> Setup | None:
    return setup.with_changes(activations="recompute") if setup.activations == "keep" else None


def _offload(setup: Setup) -> Setup | None:
    is_possible = setup.activations == "recompute" and not setup.on_cpu
    return setup.with_changes(activations="offload") if is_possible else None


def _pack_head(setup: Setup) -> Setup | None:
    if setup.method != "qlora" or setup.quantize_head:
        return None
    return setup.with_changes(quantize_head=True)


def _fewer_rows(setup: Setup) -> Setup | None:
    if setup.num_rows == 1:
        return None
    targets = setup.num_targets
    half = setup.num_rows // 2
    return setup.with_changes(
        num_rows=half, num_targets=None if targets is None else -(-targets * half // setup.num_rows)
    )


def _four_bits(setup: Setup) -> Setup | None:
    return setup.with_changes(method="qlora") if setup.method == "lora" else None


def _lower_rank(setup: Setup) -> Setup | None:
    if setup.method == "full" or setup.r <= 4:
        return None
    return setup.with_changes(r=setup.r // 2)


def _shorter(setup: Setup) -> Setup | None:
    if setup.length <= 256:
        return None
    half = setup.length // 2
    targets = setup.num_targets
    return setup.with_changes(
        length=half, num_targets=None if targets is None else -(-targets // 2)
    )


_OPTIONS = (
    _Option(
        lambda s: f"a forward of {s.num_rows} rows" if s.num_rows > 1 else "a forward of one row",
        _fewer_rows,
        lambda s: (("train.micro_batch_tokens", s.num_tokens),),
    ),
    _Option(
        lambda _: "the output head in four bits",
        _pack_head,
        lambda _: (("model.quantize_head", True),),
    ),
    _Option(
        lambda s: "moments paged to a file" if s.on_cpu else "moments paged to the host's memory",
        _paged,
        lambda s: (
            ("train.optimizer", s.optimizer),
            ("train.pages.memory" if s.on_cpu else "train.pages.device", 0),
        ),
    ),
    _Option(
        lambda _: "layers computed again in the backward pass",
        _recompute,
        lambda _: (("train.activations", "recompute"),),
    ),
    _Option(
        lambda _: "moments in 8 bits",
        _eight_bits,
        lambda s: (("train.optimizer", s.optimizer),),
    ),
    _Option(
        lambda _: "layers' inputs in the host's memory",
        _offload,
        lambda _: (("train.activations", "offload"),),
    ),
    _Option(
        lambda _: "the base in four bits",
        _four_bits,
        lambda _: (("model.quantize", "nf4"),),
        changes_result=True,
    ),
    _Option(
        lambda s: f"rank {s.r}", _lower_rank, lambda s: (("lora.r", s.r),), changes_result=True
    ),
    _Option(
        lambda s: f"a context of {s.length:,} tokens",
        _shorter,
        lambda s: (("data.max_length", s.length),),
        changes_result=True,
    ),
)


def solve(
    shape: Shape,
    setup: Setup,
    limit_bytes: int,
    overheads: Overheads | None = None,
) -> Solution:
    """The setup nearest to `setup` whose peak is at most `limit_bytes`.

    Args:
        shape: of the model.
        setup: as it was wished.
        limit_bytes: of one device.
        overheads: of the device.

    Raises:
        InputError: there is none; it says by how much, and what would do.
    """

    def peak(one: Setup) -> int:
        return plan_memory(shape, one, overheads).peak.total

    taken: list[_Option] = []
    now, now_peak = setup, peak(setup)
    for option in _OPTIONS:
        # Some may be taken again and again: half the rows, half the rank.
        while now_peak > limit_bytes:
            after = option.change(now)
            if after is None or (after_peak := peak(after)) >= now_peak:
                break
            now, now_peak = after, after_peak
            taken.append(option)
    if now_peak > limit_bytes:
        raise _impossible(shape, now, now_peak, limit_bytes, overheads)
    chosen = _without_needless(setup, taken, limit_bytes, peak)
    return _explained(shape, setup, chosen, overheads)


def _without_needless(
    setup: Setup, options: Sequence[_Option], limit: int, peak: Callable[[Setup], int]
) -> list[_Option]:
    """The options that are needed; an earlier one may have become needless by a later."""
    chosen = list(options)
    # Dearest first: what changes the result, then what costs time.
    for option in reversed(options):
        rest = list(chosen)
        rest.remove(option)
        tried = _applied(setup, rest)
        if tried is not None and peak(tried) <= limit:
            chosen = rest
    return chosen


def _applied(setup: Setup, options: Sequence[_Option]) -> Setup | None:
    for option in options:
        changed = option.change(setup)
        if changed is None:
            return None  # it builds on another that was left out
        setup = changed
    return setup


def _explained(
    shape: Shape, setup: Setup, options: Sequence[_Option], overheads: Overheads | None
) -> Solution:
    measures: list[Measure] = []
    before = plan_memory(shape, setup, overheads)
    for number, option in enumerate(options):
        changed = option.change(setup)
        assert changed is not None
        after = plan_memory(shape, changed, overheads)
        measure = Measure(
            option.name(changed),
            option.keys(changed),
            before.peak.total - after.peak.total,
            _time_factor(shape, setup, changed),
            option.changes_result,
        )
        is_repeated = number > 0 and options[number - 1] is option
        if is_repeated:
            last = measures.pop()
            measure = Measure(
                measure.name,
                measure.keys,
                measure.saved_bytes + last.saved_bytes,
                measure.time_factor * last.time_factor,
                measure.changes_result,
            )
        measures.append(measure)
        setup, before = changed, after
    return Solution(setup, before, tuple(measures))


def _time_factor(shape: Shape, before: Setup, after: Setup) -> float:
    """Seconds of a token, after over before: by what is computed, and by what is transferred."""

    def flops(setup: Setup) -> float:
        return sum(flops_per_token(shape, setup).values())

    factor = flops(after) / flops(before)
    moved = 0.0
    if after.is_paged and not before.is_paged:
        moved = 2 * moment_bytes(shape, after) / _TOKENS_OF_A_STEP
    if after.activations == "offload" and before.activations != "offload":
        moved = 2 * shape.num_layers * shape.hidden * after.value_bytes
    # Hidden behind the computation where there is enough of it; the largest share is shown.
    per_token = flops(before) / (_CPU_FLOPS if after.on_cpu else _FLOPS)
    speed = _FILE_BYTES_PER_SECOND if after.on_cpu else _HOST_BYTES_PER_SECOND
    return max(factor, factor * moved / speed / per_token)


def _impossible(
    shape: Shape, least: Setup, needed: int, limit: int, overheads: Overheads | None
) -> InputError:
    number = smallest_number_of_devices(shape, least, limit, overheads)
    # Sharding is a formula here, which no run has been compared with.
    helps = [] if number is None else [f"{number} such devices, by formula alone,"]
    device = smallest_device(shape, least, overheads)
    if device is not None:
        helps.append(f"one {device.name}")
    return InputError(
        f"{shape.name} does not fit, whatever is turned on",
        where=f"--memory {format_bytes(limit)}",
        got=f"{format_bytes(needed)} at least ({least.method}, rank {least.r}, one row of "
        f"{least.length:,} tokens): {format_bytes(needed - limit)} too much",
        do=(" or ".join(helps) + " would do; or a smaller model") if helps else "a smaller model",
    )


def largest_rows(
    shape: Shape, setup: Setup, limit_bytes: int, overheads: Overheads | None = None
) -> int:
    """The most rows of a micro-batch that fit; 0 where not even one does."""
    return _largest(
        lambda rows: setup.with_changes(num_rows=rows, num_targets=None),
        _MAX_ROWS,
        lambda one: plan_memory(shape, one, overheads).peak.total <= limit_bytes,
    )


def largest_length(
    shape: Shape, setup: Setup, limit_bytes: int, overheads: Overheads | None = None
) -> int:
    """The longest row that fits alone, of what the model was made for; 0 where none does."""
    return _largest(
        lambda length: setup.with_changes(num_rows=1, length=length, num_targets=None),
        shape.max_length or 1 << 20,
        lambda one: plan_memory(shape, one, overheads).peak.total <= limit_bytes,
    )


def _largest(make: Callable[[int], Setup], most: int, fits: Callable[[Setup], bool]) -> int:
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if fits(make(middle)):
            low = middle
        else:
            high = middle - 1
    return low


def smallest_device(
    shape: Shape, setup: Setup, overheads: Overheads | None = None
) -> Device | None:
    """The device of the table with the least memory that holds `setup`; None where none does."""
    gpu = setup.with_changes(on_cpu=False)
    needed = plan_memory(shape, gpu, None if setup.on_cpu else overheads).peak.total
    fitting = [device for device in DEVICES.values() if device.memory_bytes >= needed]
    return min(fitting, key=lambda device: (device.memory_bytes, device.peak_flops), default=None)


def smallest_number_of_devices(
    shape: Shape, setup: Setup, limit_bytes: int, overheads: Overheads | None = None
) -> int | None:
    """Over how many devices `setup` must be sharded; None where no number does."""
    number = 1
    while number <= _MAX_DEVICES:
        sharded = setup.with_changes(num_devices=number)
        if plan_memory(shape, sharded, overheads).peak.total <= limit_bytes:
            return number
        number *= 2
    return None
