"""What a sweep will do, known before it does it: steps of each candidate, rungs, and the cost.

The data are read and encoded, the models are not loaded. What concerns every candidate alike,
such as a base that is not there, is found here and ends the sweep before it begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ince.data import Split
from ince.errors import ConfigError
from ince.models import load_tokenizer, resolve
from ince.recipe import Recipe
from ince.recipe.progress import RunProgress
from ince.search.grid import Candidate
from ince.search.halving import Rung, cost, plan_rungs
from ince.search.splits import KnownSplits
from ince.train.steps import StepPlan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["SweepPlan", "check_comparable", "plan_sweep", "planned_steps"]


@dataclass(frozen=True)
class SweepPlan:
    """Rungs, the steps of each candidate's whole training, and what a reader should know."""

    rungs: list[Rung]
    num_steps: list[int]
    remarks: list[str]

    @property
    def cost(self) -> float:
        """In trainings of full length."""
        return cost(self.rungs)


def check_comparable(recipe: Recipe, *, where: str) -> None:
    """Refuse a recipe that names no rows to compare candidates on.

    Raises:
        ConfigError: it does not.
    """
    if recipe.data.eval is None:
        raise ConfigError(
            "a sweep needs held-out data: candidates are compared by their loss on them",
            where=where,
            expected="data.eval, a file of rows that are not trained on",
            do="add it to the recipe, or to the command: data.eval=FILE",
        )


def planned_steps(recipe: Recipe, split: Split) -> int:
    """The optimizer steps of a run of `recipe`."""
    return StepPlan(
        split.examples,
        packing=recipe.data.packing,
        max_length=recipe.data.max_length,
        batch_tokens=recipe.train.batch_tokens,
        epochs=recipe.train.epochs,
        max_steps=recipe.train.max_steps,
        seed=recipe.train.seed,
    ).num_steps


def plan_sweep(
    candidates: Sequence[Candidate],
    *,
    eta: int,
    min_steps: int,
    splits: KnownSplits,
    console: Console,
) -> SweepPlan:
    """Read the data and lay out the rungs.

    Args:
        candidates: at least two.
        eta: of `plan_rungs`; min_steps, too.
        splits: keeps what is encoded, for the runs.
        console: for progress.

    Raises:
        InputError: the base's tokenizer or the data cannot be used.
    """
    facts = _DataFacts(splits, RunProgress(console))
    num_steps = [facts.num_steps(candidate.recipe) for candidate in candidates]
    held_out = {facts.held_out(candidate.recipe) for candidate in candidates}
    rungs = plan_rungs(len(candidates), eta=eta, shortest_steps=min(num_steps), min_steps=min_steps)
    remarks: list[str] = []
    if len(held_out) > 1:
        remarks.append(
            "candidates read the held-out rows differently, so their losses are not over the same "
            "targets: compare them with care"
        )
    if len(rungs) == 1:
        remarks.append(
            f"{min(num_steps)} steps have no room for a rung of {min_steps} or more before the "
            "end: every candidate is trained whole"
        )
    return SweepPlan(rungs, num_steps, remarks)


class _DataFacts:
    """What the data of a recipe come to; asked once for recipes that differ in other things."""

    def __init__(self, splits: KnownSplits, progress: RunProgress) -> None:
        self._splits = splits
        self._progress = progress
        self._tokenizers: dict[tuple[str, str | None], PreTrainedTokenizerBase] = {}
        self._num_steps: dict[object, int] = {}
        self._held_out: dict[object, tuple[int, int]] = {}

    def num_steps(self, recipe: Recipe) -> int:
        """The optimizer steps of its whole training."""
        train = recipe.train
        sizes = (train.batch_tokens, train.epochs, train.max_steps, train.seed)
        key = (*self._read_as(recipe), *sizes)
        if key not in self._num_steps:
            self._num_steps[key] = planned_steps(recipe, self._split(recipe, recipe.data.train))
        return self._num_steps[key]

    def held_out(self, recipe: Recipe) -> tuple[int, int]:
        """The examples and the targets that it is measured on."""
        key = self._read_as(recipe)
        if key not in self._held_out:
            assert recipe.data.eval is not None  # `check_comparable`
            report = self._split(recipe, recipe.data.eval).report
            self._held_out[key] = (report.num_examples, report.num_targets)
        return self._held_out[key]

    @staticmethod
    def _read_as(recipe: Recipe) -> tuple[str | None, ...]:
        return (recipe.model.base, recipe.model.revision, recipe.data.model_dump_json())

    def _split(self, recipe: Recipe, path: str) -> Split:
        base = (recipe.model.base, recipe.model.revision)
        name = Path(path).name
        with self._progress.bars() as report:
            if base not in self._tokenizers:
                resolved = resolve(*base, convert=False, progress=report)
                self._tokenizers[base] = load_tokenizer(resolved.folder)
            return self._splits.reader(recipe)(
                path,
                recipe.data,
                self._tokenizers[base],
                progress=lambda done, total: report(f"reading {name}", done, total),
            )
