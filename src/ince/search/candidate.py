"""`CandidateTrainer`: one candidate of a sweep as a run of its own, trained to a step of its plan.

A candidate's folder is that of any run, and ``ince train FOLDER`` goes on with it. Its base is
loaded anew each time: a model that was trained on is not taken for a fresh one, memory is
measured for each alone, and a base in 4 bits comes from the cache in seconds.
"""

import gc
import json
import sys
from pathlib import Path

from rich.console import Console

from ince.errors import InceError, InterruptedRunError
from ince.evaluate import heldout_loss
from ince.heap import forget_peak, give_back
from ince.recipe.claim import claimed
from ince.recipe.session import Session, open_run
from ince.record import RunRecord, peak_memory_bytes
from ince.search.grid import Candidate
from ince.search.progress import SearchProgress
from ince.search.rounds import Outcome
from ince.search.splits import KnownSplits
from ince.train import StepReport

__all__ = ["CandidateTrainer"]


class CandidateTrainer:
    """Trains candidates one after the other, with progress on one console."""

    def __init__(self, console: Console, *, splits: KnownSplits) -> None:
        self._console = console
        self._splits = splits
        self.progress = SearchProgress(console)

    def __call__(self, candidate: Candidate, stop_after: int) -> Outcome:
        """Train `candidate`, from where it is, to the step `stop_after` of its plan.

        Raises:
            InterruptedRunError: Ctrl-C; a checkpoint was saved.
            InceError: whatever ends a run.
        """
        _free()
        forget_peak()
        with claimed(candidate.recipe.output_folder):
            record = open_run(candidate.recipe, resume=True)
            try:
                outcome = self._train(candidate, record, stop_after)
            except (InterruptedRunError, KeyboardInterrupt):
                record.finish("interrupted")
                raise
            except InceError as error:
                record.finish("failed", error.to_dict())
                raise
            except Exception as error:
                record.finish("failed", {"type": type(error).__name__, "what": str(error)})
                raise
            # It is trained and not measured: `ince train` on its folder does the rest.
            record.finish("interrupted")
            return outcome

    def _train(self, candidate: Candidate, record: RunRecord, stop_after: int) -> Outcome:
        record["status"] = "running"
        heard = _Heard()
        session = Session(
            candidate.recipe,
            record,
            console=self._console,
            progress=self.progress,
            read_split=self._splits.reader(candidate.recipe),
        )
        with self.progress.watched(heard):
            result = session.train(stop_after=stop_after)
        # What counts is the adapter that it gives: the best one, where the recipe keeps that.
        is_best = result.best_step is not None and result.adapter_step == result.best_step
        loss = result.best_loss if is_best else heard.losses.get(result.steps)
        if loss is None:
            # It had come so far before: the process ended between that and writing it down.
            loss = _logged_loss(candidate.recipe.output_folder / "log.jsonl", result.steps)
        if loss is None:
            loss = heldout_loss(session.tuned.plain, session.eval_batches()).loss
        return Outcome(
            loss=loss,
            steps=result.steps,
            train_loss=result.final_loss,
            tokens_per_second=result.tokens_per_second,
            seconds=result.seconds,
            peak_bytes=peak_memory_bytes(),
        )


class _Heard:
    """Held-out losses by step."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def started(self, first_step: int, num_steps: int) -> None:
        pass

    def stepped(self, report: StepReport) -> None:
        pass

    def evaluated(self, step: int, loss: float) -> None:
        self.losses[step] = loss

    def said(self, line: str) -> None:
        pass


def _logged_loss(path: Path, step: int) -> float | None:
    """The held-out loss that the log has for `step`, if it has one."""
    found: float | None = None
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("step") == step:
            loss = entry.get("eval_loss")
            found = loss if isinstance(loss, float) else found
    return found


def _free() -> None:
    """Give back what the candidate before held, on the accelerator as well."""
    gc.collect()
    give_back()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
