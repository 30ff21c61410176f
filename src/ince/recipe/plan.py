"""From a recipe to its plan: what of its keys decides bytes and time.

Before a run with `plan_run`, which knows the very rows that the worst micro-batch has, and from a
recipe alone with `setup_of_recipe`, which assumes that rows are as long as they may be.
"""

import contextlib
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from ince.errors import InceError
from ince.ops import native_dtype
from ince.plan import (
    Calibration,
    MemoryPlan,
    Method,
    Overheads,
    Setup,
    Shape,
    fill_pages,
    plan_memory,
    plan_time,
    this_device,
)
from ince.plan.shape_source import shape_of_values
from ince.plan.truth import Measured, RunPlan
from ince.recipe.schema import Recipe
from ince.recipe.what_learns import what_learns
from ince.train.memory_probe import worst_groups
from ince.train.micro_batch import shape_of
from ince.train.optimizer import pages_of
from ince.train.pages import PagesSection
from ince.train.steps import StepPlan

if TYPE_CHECKING:
    from ince.data import Split
    from ince.record import RunRecord
    from ince.train import TrainResult

__all__ = ["note_truth", "plan_run", "setup_of_recipe", "value_bytes_of"]

# More than any optimizer has.
_ALL_BYTES = 1 << 62


class Planned(Protocol):
    """What is asked of a run's session."""

    recipe: Recipe
    record: "RunRecord"
    train_split: "Split"

    @property
    def model(self) -> nn.Module:
        """The one that learns."""
        ...


def value_bytes_of(compute_dtype: str, device: str) -> int:
    """Of a number of the activations, as `model.compute_dtype` is read on a device."""
    if compute_dtype == "auto":
        return native_dtype(device).itemsize
    dtype: torch.dtype = getattr(torch, compute_dtype)
    return dtype.itemsize


def setup_of_recipe(recipe: Recipe, shape: Shape, *, device: str) -> Setup:
    """How `recipe` trains a model of `shape`; rows are full, and every token is learnt.

    Args:
        recipe: of the run.
        shape: of its base.
        device: type of the device, such as ``cpu``.

    Raises:
        ConfigError: its adapter does not fit the model.
    """
    length = recipe.data.max_length
    tokens = recipe.train.micro_batch_tokens or recipe.train.batch_tokens
    value_bytes = value_bytes_of(recipe.model.compute_dtype, device)
    method: Method = recipe.train.method
    if method == "lora" and recipe.model.quantize is not None:
        method = "qlora"
    on_cpu = device == "cpu"
    pages = pages_of(recipe.train)
    adapted, other_sizes, learns_below = (
        (None, (), False) if method == "full" else what_learns(recipe.lora, shape)
    )
    return Setup(
        method=method,
        r=recipe.lora.r,
        adapted=adapted,
        other_sizes=other_sizes,
        learns_below=learns_below,
        num_rows=max(1, tokens // length),
        length=-(-length // 64) * 64,
        batch_tokens=recipe.train.batch_tokens,
        value_bytes=value_bytes,
        blocksize=recipe.model.blocksize,
        double_quant=recipe.model.double_quant,
        quantize_head=recipe.model.quantize_head,
        is_expanded=recipe.model.expand,
        activations=recipe.train.activations,
        is_fused=recipe.train.fused,
        optimizer=recipe.train.optimizer,
        device_moment_bytes=0 if pages is None else _moments_here(pages, on_cpu=on_cpu),
        page_bytes=Setup.page_bytes if pages is None else pages.page_bytes,
        has_average=recipe.train.ema_decay is not None,
        has_dropout=recipe.lora.dropout > 0,
        on_cpu=on_cpu,
        has_compact_heap=recipe.train.compact_heap,
    )


def _moments_here(pages: PagesSection, *, on_cpu: bool) -> int | None:
    """Bytes of moments that may be where the parameters are; None: as many as there is room for."""
    if on_cpu and pages.file == 0:
        return _ALL_BYTES  # they have nowhere else to go
    total = 0
    for amount in (pages.device, pages.memory) if on_cpu else (pages.device,):
        if amount == "auto":
            return None
        total += amount
    return total


def plan_run(session: Planned) -> RunPlan | None:
    """The plan of a run that is about to train, and into its record; None where there is none.

    A run is never stopped by its plan: of a family that no plan is known for there is none.
    """
    with contextlib.suppress(InceError):
        planned = _planned(session, session.recipe.train.micro_batch_tokens)
        session.record["plan"] = planned.to_dict()
        return planned
    return None


def _planned(session: Planned, micro_batch_tokens: int | None) -> RunPlan:
    recipe = session.recipe
    model = session.model
    config: Any = getattr(model, "config", None)
    device = next(model.parameters()).device
    name = recipe.model.base
    shape = shape_of_values(config.to_dict(), name=name, where=name)
    train, data = recipe.train, recipe.data
    steps = StepPlan(
        session.train_split.examples,
        packing=data.packing,
        share_beginnings=data.share_beginnings,
        max_length=data.max_length,
        batch_tokens=train.batch_tokens,
        epochs=train.epochs,
        max_steps=train.max_steps,
        seed=train.seed,
    )
    setup = setup_of_recipe(recipe, shape, device=device.type)
    calibration = Calibration.read(this_device(device.type))
    overheads = calibration.overheads(setup)
    plans: list[tuple[MemoryPlan, Setup]] = []
    for group in worst_groups(steps, micro_batch_tokens):
        num_rows, length = shape_of(group)
        targets = sum(example.num_targets for row in group for example in row.examples)
        changed = setup.with_changes(num_rows=num_rows, length=length, num_targets=targets)
        changed = fill_pages(shape, changed, train.memory, overheads)
        plans.append((plan_memory(shape, changed, overheads), changed))
    memory, chosen = max(plans, key=lambda each: each[0].peak.total)
    # Nothing is measured now: what a measurement leaves behind in the heap would be in the run's.
    rate = calibration.rate(setup.value_bytes, device.type, measure=False)
    return RunPlan(shape, chosen, memory, plan_time(shape, chosen, rate))


def note_truth(session: Planned, planned: RunPlan | None, result: "TrainResult") -> None:
    """Plan and measurement, side by side, into the record; the next plan learns from it.

    Where a probe before the first step has cut micro-batches, the plan beside the measurement is of
    those that ran. Of a run that was cut between its steps nothing is learnt.
    """
    record = session.record
    found: dict[str, Any] = record.get("memory") or {}
    held, peak = found.get("held_bytes"), found.get("measured_bytes")
    if planned is None or not held or not peak or peak <= held or result.steps == 0:
        return
    cuts: list[dict[str, Any]] = found.get("cuts") or []
    ran = cuts[0]["micro_batch_tokens"] if cuts else session.recipe.train.micro_batch_tokens
    if ran != session.recipe.train.micro_batch_tokens:
        planned = _planned(session, ran)
    learnt = [p for p in session.model.parameters() if p.requires_grad]
    # An accelerator's allocator does not count the context beside it: that stays as assumed.
    context = 0 if planned.setup.on_cpu else Overheads.assumed(planned.setup).framework_bytes
    measured = Measured(
        weight_bytes=record["base"]["weight_bytes"],
        adapter_bytes=0
        if planned.setup.method == "full"
        else sum(p.numel() * p.element_size() for p in learnt),
        held_bytes=held + context,
        peak_bytes=peak + context,
        tokens_per_second=result.tokens_per_second,
    )
    record["plan"] = {**planned.beside(measured), "num_cuts": max(0, len(cuts) - 1)}
    if len(cuts) > 1:
        return
    device = next(session.model.parameters()).device
    calibration = Calibration.read(this_device(device.type))
    rate = calibration.rate(planned.setup.value_bytes, device.type)
    calibration.learn(planned.fact(measured, rate))
