"""State in 8 bits, in the names and the layout of bitsandbytes.

    state1, state2      codes of the moments, or float32 where a tensor is small
    absmax1, absmax2    a scale for each block of 256
    qmap1, qmap2        what codes mean: the signed dynamic map for a first moment, the unsigned
                        one for a second

bitsandbytes hides them one level deeper in what it saves, from tools that gather tensors by the
shape of parameters; both forms are read. So are the moments of an optimizer in 32 bits, which
are coded on the way.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ince.errors import CorruptFileError
from ince.ops import dequantize_8bit, dynamic_map, quantize_8bit
from ince.optim.rules.rule import BLOCK, Slot

__all__ = ["MIN_8BIT_SIZE", "adopt_coded", "coded_constants", "coded_slots", "is_coded"]

MIN_8BIT_SIZE = 4096
"""Elements that a tensor has at least to be coded, as in bitsandbytes."""

_HIDDEN = "__bnb_optimizer_quant_state__"
_NAMES_IN_32_BITS = ("exp_avg", "exp_avg_sq")

# Maps that differ by less are one map, made on processors that round otherwise.
_SAME_MAP = 1e-6


def coded_slots(num_moments: int, *, coded: bool) -> tuple[Slot, ...]:
    """Each moment, in 8 bits with its scales, or in float32."""
    numbers = range(1, num_moments + 1)
    if not coded:
        return tuple(Slot(f"state{i}", torch.float32) for i in numbers)
    codes = tuple(Slot(f"state{i}", torch.uint8) for i in numbers)
    return codes + tuple(Slot(f"absmax{i}", torch.float32, BLOCK) for i in numbers)


def coded_constants(num_moments: int, *, coded: bool) -> dict[str, Tensor]:
    """The maps."""
    numbers = range(1, num_moments + 1) if coded else ()
    return {f"qmap{i}": dynamic_map(signed=i == 1) for i in numbers}


def is_coded(state: Mapping[str, Any]) -> bool:
    """Whether a saved state is in 8 bits."""
    first = _visible(state).get("state1")
    return isinstance(first, Tensor) and first.dtype == torch.uint8


def adopt_coded(
    state: Mapping[str, Any], numel: int, num_moments: int, *, coded: bool
) -> dict[str, Tensor]:
    """The content of `coded_slots`, out of a state in 8 or 32 bits.

    Args:
        state: by name, ``step`` left out; as this, bitsandbytes or `torch.optim` saved it.
        numel: of the parameter.
        num_moments: 2 for AdamW, 1 for Lion.
        coded: whether it is to be in 8 bits.

    Raises:
        CorruptFileError: it is not the state of such a parameter, or coded in another map.
    """
    parts = _visible(state)
    numbers = range(1, num_moments + 1)
    if set(parts) == set(_NAMES_IN_32_BITS[:num_moments]):
        parts = {f"state{i}": parts[_NAMES_IN_32_BITS[i - 1]] for i in numbers}
    was_coded = is_coded(parts)
    slots = coded_slots(num_moments, coded=was_coded)
    maps = coded_constants(num_moments, coded=was_coded)
    names = {slot.name for slot in slots}
    # Where state is kept apart from what never changes, there are no maps.
    if set(parts) not in (names, names | set(maps)):
        raise CorruptFileError(
            "not the state of an optimizer with such moments",
            got=", ".join(sorted(map(str, parts))) or "nothing",
            expected=", ".join(sorted(names)),
            do="load it into the kind of optimizer that saved it",
        )
    for slot in slots:
        _check_part(slot, parts[slot.name], numel)
    for name in maps.keys() & parts.keys():
        _check_map(name, parts[name], maps[name])
    if was_coded == coded:
        return {slot.name: parts[slot.name] for slot in slots}
    found: dict[str, Tensor] = {}
    for i in numbers:
        moment = parts[f"state{i}"]
        if coded:
            found[f"state{i}"], found[f"absmax{i}"] = quantize_8bit(moment, signed=i == 1)
        else:
            scales = parts[f"absmax{i}"].view(-1)
            found[f"state{i}"] = dequantize_8bit(moment, scales, signed=i == 1)
    return found


def _visible(state: Mapping[str, Any]) -> dict[str, Any]:
    parts = {key: value for key, value in state.items() if key != _HIDDEN}
    return parts | dict(state.get(_HIDDEN, {}))


def _check_part(slot: Slot, value: object, numel: int) -> None:
    expected = slot.numel(numel)
    floats = (torch.float32, torch.bfloat16, torch.float16)
    allowed = floats if slot.dtype == torch.float32 else (slot.dtype,)
    if not isinstance(value, Tensor) or value.numel() != expected or value.dtype not in allowed:
        raise CorruptFileError(
            "a part of an optimizer's state does not fit its parameter",
            where=slot.name,
            got=f"{value.numel()} of {value.dtype}" if isinstance(value, Tensor) else value,
            expected=f"{expected} of {slot.dtype}",
        )


def _check_map(name: str, found: object, expected: Tensor) -> None:
    if isinstance(found, Tensor) and found.shape == expected.shape:
        difference = float((found.cpu() - expected).abs().max())
        if difference <= _SAME_MAP:
            return
        got = f"values that are off by up to {difference:g}"
    else:
        got = "no map of 256 values"
    raise CorruptFileError(
        "codes are of another map than the dynamic one",
        where=name,
        got=got,
        expected="the 8-bit dynamic map of bitsandbytes",
    )
