"""`Sweep`: candidates, their halving and a folder, planned and carried out.

The folder is the sweep's own: a run for each candidate, ``sweep.json``, and in the end
``best.yaml``. The same sweep in the same folder goes on where it was cut off.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ince.recipe.claim import claimed
from ince.search.candidate import CandidateTrainer
from ince.search.grid import Candidate
from ince.search.plan import SweepPlan, check_comparable, plan_sweep
from ince.search.rounds import run_rounds
from ince.search.splits import KnownSplits
from ince.search.sweep_state import SweepState, sweep_identity

__all__ = ["Sweep"]


@dataclass(frozen=True)
class Sweep:
    """A sweep, described.

    Attributes:
        candidates: of `build_candidates`, each with its folder in `folder`.
        folder: of the sweep.
        recipe: name of the recipe, for people.
        eta: 1/eta of the candidates go on from a rung to the next.
        min_steps: of the first rung.
    """

    candidates: Sequence[Candidate]
    folder: Path
    recipe: str
    eta: int = 3
    min_steps: int = 10

    def plan(self, *, console: Console) -> SweepPlan:
        """What it will do. Nothing is written.

        Raises:
            InputError: a base's tokenizer or the data cannot be used.
        """
        return self._plan(KnownSplits(), console)

    def _plan(self, splits: KnownSplits, console: Console) -> SweepPlan:
        for candidate in self.candidates:
            check_comparable(candidate.recipe, where=self.recipe)
        return plan_sweep(
            self.candidates,
            eta=self.eta,
            min_steps=self.min_steps,
            splits=splits,
            console=console,
        )

    def run(self, *, console: Console, fresh: bool = False) -> SweepState:
        """Carry it out, or go on with it; one that is done is returned as it is.

        Args:
            console: for progress.
            fresh: remove what an earlier sweep left in the folder first.

        Raises:
            InputError: data or bases cannot be used, or the folder holds something else.
            InterruptedRunError: Ctrl-C; everything that was done is kept.
            TrainingError: every candidate failed.
        """
        splits = KnownSplits()
        trainer = CandidateTrainer(console, splits=splits)
        for candidate in self.candidates:
            check_comparable(candidate.recipe, where=self.recipe)
        identity = sweep_identity(self.candidates, eta=self.eta, min_steps=self.min_steps)
        with claimed(self.folder):
            state = SweepState.open(self.folder, identity=identity, fresh=fresh)
            if state is None:
                plan = self._plan(splits, console)
                state = SweepState.create(
                    self.folder,
                    self.candidates,
                    identity=identity,
                    recipe=self.recipe,
                    eta=self.eta,
                    min_steps=self.min_steps,
                    rungs=plan.rungs,
                    num_steps=plan.num_steps,
                    remarks=plan.remarks,
                )
            elif state.content["status"] == "done":
                trainer.progress.say(f"{self.folder} is done already; --fresh starts it again")
                return state
            for remark in state.content["remarks"]:
                trainer.progress.say(remark)
            run_rounds(self.candidates, state, trainer, say=trainer.progress.say)
        return state
