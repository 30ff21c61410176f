"""`fused`: for the time of a training run, modules compute with forwards of ours.

A kind of module is compared with its own way once, on the first of its class; the others of the
class follow. What a class has that ours has not, a bias of a kind or a multiplier, then shows in
that comparison, and the class is left alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ince.lora.layers.adapted import base_of, outer_modules, own_parameters, plain_model
from ince.lora.layers.linear import LinearGeometry
from ince.models.fused.forwards import Forwards, attention_projections, gated_block, norms
from ince.models.fused.probe import agrees, placed

__all__ = ["FusedReport", "fused"]


@dataclass
class FusedReport:
    """What was fused, by the class of the module, and what was left alone."""

    counts: dict[str, int] = field(default_factory=dict)
    """Modules that compute with a forward of ours."""
    left: tuple[str, ...] = ()
    """Classes that looked alike and compute something else."""

    def to_dict(self) -> dict[str, object]:
        """For the record of a run."""
        return {"modules": self.counts, "left": list(self.left)}


@contextmanager
def fused(model: nn.Module) -> Iterator[FusedReport]:
    """Inside, `model` computes norms, feed-forward blocks and q, k, v by fused functions.

    Results equal those outside up to rounding. A module whose forward somebody else has replaced
    is left alone.

    Args:
        model: of transformers, wrapped by an adapter or not.
    """
    report = FusedReport()
    was_training = model.training
    model.eval()  # dropout would tell two equal ways apart
    try:
        chosen = _choose(plain_model(model), report)
    finally:
        model.train(was_training)
    with placed(chosen):
        yield report


def _choose(model: nn.Module, report: FusedReport) -> Forwards:
    chosen: Forwards = {}
    which: dict[tuple[object, ...], int | None] = {}
    left: set[str] = set()
    for _, module in outer_modules(model):
        for find, compute in _KINDS:
            candidates = [c for c in find(module) if not any("forward" in vars(m) for m in c)]
            if not candidates:
                continue
            # The class, and where modules of one class differ.
            key = (type(module), find, len(candidates))
            if key not in which:
                which[key] = _first_right(candidates, module, compute)
            index = which[key]
            name = type(module).__name__
            if index is None:
                left.add(name)
            else:
                chosen |= candidates[index]
                report.counts[name] = report.counts.get(name, 0) + 1
    report.left = tuple(sorted(left))
    return chosen


def _first_right(
    candidates: list[Forwards],
    module: nn.Module,
    compute: Callable[[nn.Module, Tensor], Any],
) -> int | None:
    width, like = _input_of(module, candidates[0])
    for index, forwards in enumerate(candidates):
        if agrees(forwards, lambda x: compute(module, x), width, like):
            return index
    return None


def _input_of(module: nn.Module, forwards: Forwards) -> tuple[int, Tensor]:
    weight = own_parameters(module).get("weight")
    if weight is not None:
        return int(weight.shape[0]), weight
    held: Any = module
    layer = held.q_proj if module not in forwards else held.gate_proj
    geometry = LinearGeometry(base_of(layer))
    device = geometry.base.weight.device
    return geometry.in_features, torch.empty(0, dtype=geometry.compute_dtype, device=device)


def _call(module: nn.Module, x: Tensor) -> Any:
    return module(x)


def _project(module: nn.Module, x: Tensor) -> Any:
    block: Any = module
    return block.q_proj(x), block.k_proj(x), block.v_proj(x)


_KINDS: tuple[
    tuple[Callable[[nn.Module], list[Forwards]], Callable[[nn.Module, Tensor], Any]], ...
] = ((norms, _call), (gated_block, _call), (attention_projections, _project))
