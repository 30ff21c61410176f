"""AdamW and Lion with moments in 8 bits: a quarter of the memory, on any device.

Two bytes a weight instead of eight for AdamW, one instead of four for Lion. Their state is that
of bitsandbytes, name for name, so that a run that began there goes on here and the other way
round. What differs: a step on a CPU is one pass over the weights, and codes are exact there too.

Source: 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ince.errors import ConfigError, CorruptFileError, InputError, Problem
from ince.optim.rules.adamw_8bit import AdamW8bitRule
from ince.optim.rules.coded import (
    MIN_8BIT_SIZE,
    adopt_coded,
    coded_constants,
    coded_slots,
    is_coded,
)
from ince.optim.rules.lion_8bit import Lion8bitRule

__all__ = ["AdamW8bit", "Lion8bit"]


class _EightBit(torch.optim.Optimizer):
    """What the two share; an optimizer of torch must be derived from its class.

    The state of a parameter is ``step``, a whole number, and what `ince.optim.rules.coded` says.
    """

    _rule: AdamW8bitRule | Lion8bitRule

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        _check_numbers(type(self).__name__, defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; numbers of the group that cannot be are refused."""
        _check_numbers(type(self).__name__, {**self.defaults, **param_group})
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            # Groups of bitsandbytes do not have all of ours.
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of every parameter that has a gradient; returns what `closure` gives.

        Raises:
            InputError: a gradient is sparse, or of another type; nothing has moved then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moving = [
            (parameter, group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        for parameter, _ in moving:
            _check(parameter)
        for parameter, group in moving:
            state = self.state[parameter]
            if not state:
                coded = parameter.numel() >= group["min_8bit_size"]
                state.update(self._initial_state(parameter, coded=coded))
            state["step"] += 1
            self._rule.step_(parameter, parameter.grad, state, options=group, step=state["step"])
        return loss

    def keep_in_float32(self, parameters: Iterable[Tensor]) -> None:
        """Give parameters that have made no step yet a state in float32.

        bitsandbytes advises so for embeddings, whose gradients are the least alike.
        """
        for parameter in parameters:
            if not self.state.get(parameter):
                self.state[parameter] = self._initial_state(parameter, coded=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave: here, in bitsandbytes, or in an optimizer in 32 bits.

        Raises:
            CorruptFileError: the state of a parameter is not one; nothing is loaded then.
            ValueError: the groups are not those of this optimizer, as of any of torch's.
        """
        groups = state_dict["param_groups"]
        numbers = chain.from_iterable(group["params"] for group in groups)
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        saved = state_dict["state"]
        found = {
            parameter: self._read_state(number, saved[number], parameter)
            for number, parameter in zip(numbers, parameters, strict=False)
            if number in saved
        }
        # Of torch only what concerns groups: it would turn codes into the parameters' type.
        super().load_state_dict({"state": {}, "param_groups": groups})
        self.state.update(found)

    def _initial_state(self, parameter: Tensor, *, coded: bool) -> dict[str, Any]:
        """Moments of zero."""
        state: dict[str, Any] = {"step": 0}
        for slot in coded_slots(self._rule.num_moments, coded=coded):
            shape = slot.shape(parameter.shape)
            state[slot.name] = torch.zeros(shape, dtype=slot.dtype, device=parameter.device)
        return state | (_maps_on(self._rule.num_moments, parameter.device) if coded else {})

    def _read_state(
        self, number: object, saved: Mapping[str, Any], parameter: Tensor
    ) -> dict[str, Any]:
        parts = {name: value for name, value in saved.items() if name != "step"}
        # What was saved as codes or as float32 by an optimizer like this stays so.
        coded = is_coded(parts) or ("exp_avg" in parts and parameter.numel() >= MIN_8BIT_SIZE)
        try:
            found = adopt_coded(parts, parameter.numel(), self._rule.num_moments, coded=coded)
            count = _count(saved.get("step"))
        except CorruptFileError as error:
            error.where = ", ".join(filter(None, (f"parameter {number}", error.where)))
            raise
        state = self._initial_state(parameter, coded=coded)
        for name, value in found.items():
            state[name].copy_(value.reshape(state[name].shape))
        return state | {"step": count}


class AdamW8bit(_EightBit):
    """AdamW (arXiv:1711.05101) with both moments in 8 bits.

    Args:
        params: parameters or groups, as of any optimizer.
        lr: learning rate.
        betas: decays of the moments.
        eps: added to the root of the second moment.
        weight_decay: per step and unit of learning rate.
        min_8bit_size: tensors of fewer numbers keep float32 moments.

    Raises:
        ConfigError: a number cannot be.
    """

    _rule = AdamW8bitRule()

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        min_8bit_size: int = MIN_8BIT_SIZE,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "min_8bit_size": min_8bit_size,
            },
        )


class Lion8bit(_EightBit):
    """Lion (arXiv:2302.06675) with its moment in 8 bits.

    Args:
        params: parameters or groups, as of any optimizer.
        lr: how far each weight moves in a step: a third to a tenth of AdamW's.
        betas: how much of the moment is in a step's direction, and how much is kept.
        weight_decay: per step and unit of learning rate.
        min_8bit_size: tensors of fewer numbers keep a float32 moment.

    Raises:
        ConfigError: a number cannot be.
    """

    _rule = Lion8bitRule()

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        min_8bit_size: int = MIN_8BIT_SIZE,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                # Lion has none; bitsandbytes asks for it in a group that it loads.
                "eps": 0.0,
                "weight_decay": weight_decay,
                "min_8bit_size": min_8bit_size,
            },
        )


@lru_cache(maxsize=32)
def _maps_on(num_moments: int, device: torch.device) -> dict[str, Tensor]:
    maps = coded_constants(num_moments, coded=True)
    return {name: each.to(device) for name, each in maps.items()}


def _count(value: Any) -> int:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value < math.inf or value != int(value):
        raise CorruptFileError(
            "not a count of steps", where="step", got=value, expected="a whole number from 0 on"
        )
    return int(value)


def _check(parameter: Tensor) -> None:
    gradient = parameter.grad
    assert gradient is not None  # asked before
    if gradient.layout != torch.strided or parameter.layout != torch.strided:
        raise InputError(
            "sparse gradients are not supported by 8-bit optimizers",
            got=f"a gradient of layout {gradient.layout}",
            expected="dense gradients",
            do="build the embedding with sparse=False, or use torch.optim.SparseAdam for it",
        )
    if parameter.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise InputError(
            "8-bit optimizers do not know this type",
            where=f"a parameter of shape {tuple(parameter.shape)}",
            got=str(parameter.dtype),
            expected="float32, bfloat16 or float16",
        )


def _check_numbers(name: str, numbers: Mapping[str, Any]) -> None:
    """Raise `ConfigError` with everything in a group that cannot be."""
    problems = [
        Problem(key, f"expected a number of at least 0, got {numbers[key]!r}")
        for key in ("lr", "eps", "weight_decay", "min_8bit_size")
        if not _is_number(numbers[key]) or not 0 <= numbers[key] < math.inf
    ]
    betas = numbers["betas"]
    is_pair = isinstance(betas, (tuple, list)) and len(betas) == 2
    if not is_pair or not all(_is_number(beta) and 0 <= beta < 1 for beta in betas):
        problems.append(Problem("betas", f"expected two numbers from 0 to below 1, got {betas!r}"))
    if problems:
        raise ConfigError(f"{name} cannot train like this", problems=problems)


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, (int, float)) and not isinstance(value, bool)
