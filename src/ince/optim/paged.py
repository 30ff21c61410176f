"""An optimizer whose state is in pages: on the device, in memory or in a file.

`PagedOptimizer` is what `PagedAdamW` and its kin have in common. It gives each parameter its
state when it first has a gradient, finds the stretches that a page is for, and has the rule
(`ince.optim.rules`) take their step. Where pages are is `ince.optim.pages`' concern.

Unlike bitsandbytes' paged optimizers it does not rest on CUDA's managed memory: it pages on any
device, to a file as well, by plan and not by fault, and a state dict that is loaded pages on.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ince.errors import ConfigError, CorruptFileError, Problem, TrainingError
from ince.optim.kept import (
    Kept,
    StateEntry,
    fill,
    flat_state,
    matching_groups,
    parts_by_parameter,
    read_slot,
    step_of,
)
from ince.optim.options import check_options
from ince.optim.pages import PagesConfig, PageStore, PagesUsage
from ince.optim.pages.carrier import Carrier, carrier_of
from ince.optim.pages.layout import Item, cut
from ince.optim.rules import Rule
from ince.optim.step_work import Job, StepWork

__all__ = ["PagedOptimizer"]


class PagedOptimizer(torch.optim.Optimizer):
    """An optimizer that pages. Not one by itself: use `PagedAdamW`, `PagedLion` and so on.

    A step is taken whole or not at all: where the file of pages fails, parameters and state are
    as they were before it.

    Args:
        params: parameters or groups, as of any optimizer.
        rule: what a step does.
        defaults: options of the rule, for groups that do not say otherwise.
        pages: budgets; None: all state stays where the parameters are.

    Raises:
        ConfigError: a number, a parameter or the folder of the file cannot be.
    """

    def __init__(
        self,
        params: Iterable[Any],
        rule: Rule,
        defaults: dict[str, Any],
        *,
        pages: PagesConfig | None = None,
    ) -> None:
        self._rule = rule
        self._store = PageStore(PagesConfig(device=None) if pages is None else pages)
        self._kept: dict[Tensor, Kept] = {}
        self._carriers: dict[torch.device, Carrier] = {}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Train more parameters, which get their state when they first have a gradient.

        Raises:
            ConfigError: a number of the group cannot be, or a parameter.
        """
        check_options({**self.defaults, **param_group}, of=type(self).__name__)
        super().add_param_group(param_group)
        parameters: list[Tensor] = self.param_groups[-1]["params"]
        problems: list[Problem] = []
        if len(set(parameters)) < len(parameters):
            problems.append(Problem("params", "a parameter is there twice"))
        problems += [
            Problem("params", f"{p.dtype} cannot be trained, only floating-point numbers")
            for p in parameters
            if not p.dtype.is_floating_point
        ][:1]
        if problems:
            self.param_groups.pop()
            raise ConfigError("these parameters cannot be trained", problems=problems)

    # ---------------------------------------------------------------------------------- a step

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of every parameter that has a gradient; returns what `closure` gives.

        Raises:
            DiskFullError: the file of pages has no room on its disk.
            CorruptFileError: it was cut off, or cannot be read or written.
            TrainingError: a gradient is sparse or of another type; a parameter is not what it
                was; or an earlier step was cut off in its middle.

        After an error of the file or a gradient, parameters and state are as before the step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        options = {p: group for group in self.param_groups for p in group["params"]}
        with_gradient = {p: p.grad for p in options if p.grad is not None}
        for parameter, gradient in with_gradient.items():
            self._check(parameter, gradient)
        self._give_pages([p for p in with_gradient if p not in self._kept])
        jobs = {
            p: Job(p, gradient, options[p], self._kept[p].step + 1)
            for p, gradient in with_gradient.items()
        }
        pages = {page for p in jobs for page, _ in self._kept[p].pieces}
        in_order = sorted(pages, key=lambda page: page.number)
        self._store.step(in_order, StepWork(self._rule, jobs))
        for parameter, job in jobs.items():
            job.stretches.put_back()
            self._kept[parameter].step = job.step
        return loss

    def _check(self, parameter: Tensor, gradient: Tensor) -> None:
        if gradient.layout != torch.strided:
            raise TrainingError(
                f"{type(self).__name__} takes no sparse gradients", got=gradient.layout
            )
        if gradient.dtype != parameter.dtype:
            raise TrainingError(
                "a gradient is of another type than its parameter",
                got=gradient.dtype,
                expected=parameter.dtype,
            )
        kept = self._kept.get(parameter)
        if kept is not None and not kept.is_of(parameter):
            raise TrainingError(
                "a parameter is not what it was when it was first trained",
                got=f"{parameter.numel()} elements, {parameter.dtype}, {parameter.device}",
                expected=f"{kept.numel} elements, {kept.dtype}, {kept.device}",
                do="make the optimizer after the model has its place and type",
            )

    def _give_pages(self, parameters: Iterable[Tensor]) -> None:
        """State of zeros for parameters that have none; for all of them, or none."""
        kept = {
            p: Kept(p.numel(), p.dtype, p.device, self._rule.slots(p.numel(), p.dtype))
            for p in parameters
        }
        of_device: dict[torch.device, list[Item]] = {}
        for parameter, its in kept.items():
            item = Item(parameter, its.numel, its.dtype, its.slots)
            of_device.setdefault(its.device, []).append(item)
        page_bytes = self._store.page_bytes
        plans = [
            (plan, self._carrier(device))
            for device, items in of_device.items()
            for plan in cut(items, page_bytes)
        ]
        if plans:
            for page in self._store.add(plans):
                for piece in page.plan.pieces:
                    assert isinstance(piece.item.key, Tensor)
                    kept[piece.item.key].pieces.append((page, piece))
        self._kept.update(kept)

    def _carrier(self, device: torch.device) -> Carrier:
        if device not in self._carriers:
            self._carriers[device] = carrier_of(device, self._store.page_bytes)
        return self._carriers[device]

    # ------------------------------------------------------------------------------------ pages

    def usage(self) -> PagesUsage:
        """Bytes of state by tier, bytes moved, and seconds lost waiting since the start."""
        return self._store.usage()

    @property
    def state_bytes(self) -> int:
        """Of the whole state, wherever it is; grows when parameters get their first gradient."""
        return sum(page.plan.state_bytes for page in self._store.pages)

    def set_budget(
        self, *, device: int | str | None = "same", memory: int | str | None = "same"
    ) -> None:
        """Change budgets between two steps; pages leave, the least soon needed first, or return.

        Args:
            device: bytes, also as ``256MiB``; None: as many as are needed; "same": as it is.
            memory: the same.

        Raises:
            ConfigError: a budget is less than a page, or all tiers together have no room.
            DiskFullError: what leaves memory has no room on the disk; all is as it was.
            CorruptFileError: the file of pages cannot be read or written; no state is lost.
        """
        budgets = self._store.budgets
        checked = PagesConfig.model_validate(
            {
                "device": budgets.device if device == "same" else device,
                "memory": budgets.memory if memory == "same" else memory,
                "file": budgets.file,
                "page_bytes": self._store.page_bytes,
            }
        )
        self._store.set_budgets(replace(budgets, device=checked.device, memory=checked.memory))

    def close(self) -> None:
        """Let state, buffers and the file go; the optimizer is then as before its first step."""
        self._store.close()
        self._kept.clear()

    # ------------------------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """As `torch.optim.Optimizer.state_dict`, whole and in memory; see `entries` otherwise.

        Raises:
            CorruptFileError: the file of pages cannot be read.
        """
        self.state = defaultdict(dict)
        try:
            for parameter, kept in self._trained():
                self.state[parameter] = {
                    "step": torch.tensor(float(kept.step)),
                    **{
                        slot.name: read_slot(self._store, parameter, kept, slot)
                        for slot in kept.slots
                    },
                    **self._rule.constants(kept.numel, kept.dtype),
                }
            return super().state_dict()
        finally:
            self.state = defaultdict(dict)

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave, here or in a kindred optimizer of torch.

        It goes to the tiers that this optimizer's budgets say, wherever it was before.

        Raises:
            CorruptFileError: it is not of these parameters, or of another optimizer; nothing
                was changed.
            DiskFullError: the file of pages has no room on its disk; no step is taken until a
                state was loaded.
        """
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        groups = matching_groups(state_dict, self.param_groups, of=type(self).__name__)
        by_id = dict(
            zip(
                chain.from_iterable(group["params"] for group in groups),
                chain.from_iterable(group["params"] for group in self.param_groups),
                strict=True,
            )
        )
        found: dict[Tensor, tuple[int, Mapping[str, Tensor]]] = {}
        for key, state in state_dict["state"].items():
            if key not in by_id:
                raise CorruptFileError("optimizer state of an unknown parameter", where=key)
            found[by_id[key]] = self._adopted(by_id[key], state, where=f"parameter {key}")
        self._load({p: step for p, (step, _) in found.items()}, lambda p: found[p][1])
        for group, saved in zip(self.param_groups, groups, strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def entries(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[StateEntry]:
        """The state as ``NAME.exp_avg`` and so on, each read from its pages when it is asked for.

        Valid until the next step.

        Args:
            parameters: by name; those that were never trained have no state.
        """
        for name, parameter in parameters.items():
            kept = self._kept.get(parameter)
            if kept is None or kept.step == 0:
                continue
            yield _known(f"{name}.step", torch.tensor(float(kept.step)))
            for slot in kept.slots:
                yield StateEntry(
                    f"{name}.{slot.name}",
                    slot.shape(parameter.shape),
                    slot.dtype,
                    lambda p=parameter, kept=kept, slot=slot: read_slot(self._store, p, kept, slot),
                )
            for key, value in self._rule.constants(kept.numel, kept.dtype).items():
                yield _known(f"{name}.{key}", value)

    @torch.no_grad()
    def load_entries(
        self,
        parameters: Mapping[str, nn.Parameter],
        names: Collection[str],
        read: Callable[[str], Tensor],
    ) -> None:
        """Put back what `entries` gave, one parameter at a time.

        Args:
            parameters: by name.
            names: of all tensors that there are.
            read: gives the tensor of a name; may be called twice for one.

        Raises:
            CorruptFileError: the state is not of these parameters. Where that shows only when a
                tensor is read, no step is taken until a state was loaded.
            DiskFullError: the file of pages has no room on its disk; the same.
        """
        parts = parts_by_parameter(names, parameters)
        for name, its in parts.items():
            if "step" not in its:
                raise CorruptFileError("an optimizer moment is missing", where=f"{name}.step")
        name_of: dict[Tensor, str] = {parameters[name]: name for name in parts}

        def values(parameter: Tensor) -> Mapping[str, Tensor]:
            name = name_of[parameter]
            state = {part: read(f"{name}.{part}") for part in parts[name]}
            return self._adopted(parameter, state, where=name)[1]

        steps = {p: step_of(read(f"{n}.step"), f"{n}.step") for p, n in name_of.items()}
        self._load(steps, values)

    def _adopted(
        self, parameter: Tensor, state: Mapping[str, Any], where: str
    ) -> tuple[int, Mapping[str, Tensor]]:
        """Steps and slots of a parameter out of some optimizer's state."""
        if "step" not in state:
            raise CorruptFileError("an optimizer moment is missing", where=f"{where}, step")
        step = step_of(state["step"], where)
        tensors = {name: value for name, value in state.items() if name != "step"}
        numel, dtype = parameter.numel(), parameter.dtype
        try:
            adopted = self._rule.adopt(tensors, numel, dtype)
        except CorruptFileError as error:
            error.where = where if error.where is None else f"{where}, {error.where}"
            raise
        slots = self._rule.slots(numel, dtype)
        for slot in slots:
            shape = adopted[slot.name].shape
            if slot.per == 1 and shape not in (parameter.shape, (numel,)):
                raise CorruptFileError(
                    "an optimizer moment has another shape than its parameter",
                    where=f"{where}.{slot.name}",
                    got=tuple(shape),
                    expected=tuple(parameter.shape),
                )
        return step, flat_state(parameter, slots, adopted)

    def _load(
        self, steps: Mapping[Tensor, int], values: Callable[[Tensor], Mapping[str, Tensor]]
    ) -> None:
        order = [p for group in self.param_groups for p in group["params"] if p in steps]
        with self._store.filled_anew():
            self._kept.clear()
            self._give_pages(order)
            fill(self._store, values)
        for parameter in order:
            self._kept[parameter].step = steps[parameter]

    def _trained(self) -> Iterator[tuple[Tensor, Kept]]:
        for group in self.param_groups:
            for parameter in group["params"]:
                kept = self._kept.get(parameter)
                if kept is not None and kept.step:
                    yield parameter, kept

    def __getstate__(self) -> NoReturn:
        raise TrainingError(
            "an optimizer with pages cannot be copied: its state may be in a file",
            do="make another one, and load this one's state_dict into it",
        )


def _known(name: str, value: Tensor) -> StateEntry:
    return StateEntry(name, value.shape, value.dtype, value.clone)
