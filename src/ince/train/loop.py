"""The training loop: steps, evaluation and samples at intervals, checkpoints, a clean stop.

It knows a model of which something learns, examples, a config and a run
folder. It does not know where any of them came from, nor what happens afterwards. What a run
consists of, and what a step does, is in `ince.train.run`.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ince.data.example import Example
from ince.errors import InterruptedRunError, TrainingError
from ince.heap import blocks_apart
from ince.record import RunRecord
from ince.train.compute import ComputeReport, computed_as
from ince.train.config import TrainConfig
from ince.train.interrupt import StopRequest, stop_request
from ince.train.log import RunLog
from ince.train.memory_guard import MemoryGuard
from ince.train.observer import Observer
from ince.train.packing_proof import prove_packing
from ince.train.run import TrainRun
from ince.train.saving import save_patiently
from ince.train.steps import StepPlan

__all__ = ["TrainResult", "train"]


@dataclass(frozen=True)
class TrainResult:
    """Totals of a finished run, over all sittings."""

    steps: int
    epochs: float
    num_tokens: int
    num_targets: int
    seconds: float
    tokens_per_second: float
    first_loss: float
    final_loss: float
    num_skipped: int
    """Steps whose loss or gradient was not finite: passed over."""
    num_spikes: int
    """Steps whose loss was far above those before: taken, and named in the log."""
    adapter_step: int
    """The step whose adapter the model has: the last one, or the best."""
    best_step: int | None
    best_loss: float | None
    """Of the evaluations, in nats; None where there was none."""
    stopped_early: bool
    computed: dict[str, object]
    """What was fused, kept and compiled; of the last sitting."""


def train(
    model: nn.Module,
    examples: Sequence[Example],
    config: TrainConfig,
    *,
    run_dir: Path,
    recipe_digest: str,
    packing: bool,
    share_beginnings: bool = True,
    max_length: int,
    pad_id: int,
    observer: Observer,
    evaluate: Callable[[], float] | None = None,
    sample: Callable[[], list[dict[str, str]]] | None = None,
    stop_after: int | None = None,
    lr_at: Callable[[int], float] | None = None,
    record: RunRecord | None = None,
) -> TrainResult:
    """Train until the config's budget is used, resuming from the newest whole checkpoint.

    Afterwards the model has the weights of the last step, or of the best where the config keeps
    it.

    Args:
        model: with trainable parameters; the others are left alone.
        examples: to learn from, in a fixed order.
        config: budget, optimizer and intervals.
        run_dir: where log.jsonl and checkpoints/ are.
        recipe_digest: kept in each checkpoint; one of another recipe is refused.
        packing: several examples to a row.
        share_beginnings: of those in one row.
        max_length: of a row, in tokens.
        pad_id: token that fills short rows.
        observer: is told what happens.
        evaluate: gives the held-out loss; called at intervals.
        sample: gives answers to look at; called at intervals.
        stop_after: end after this step though the plan is longer, evaluated and saved, to be gone
            on with later. The schedule is that of the whole plan.
        lr_at: the learning rate of a step, counted from 0, in place of the config's schedule.
        record: of the run; gets what was found out about memory, and the proof about packing.

    Raises:
        InterruptedRunError: Ctrl-C or SIGTERM; a checkpoint was saved first.
        TrainingError: nothing to train, losses in a row that are not finite, or not even one row
            fits into memory.
        CorruptFileError: checkpoints exist and none is whole, or they are of another recipe.
        DiskFullError: no checkpoint could be saved for minutes; the last one is good.
        ProofError: packed examples do not give the logits that they give alone.
    """
    plan = StepPlan(
        examples,
        packing=packing,
        share_beginnings=share_beginnings,
        max_length=max_length,
        batch_tokens=config.batch_tokens,
        epochs=config.epochs,
        max_steps=config.max_steps,
        seed=config.seed,
    )
    run = TrainRun(
        model,
        plan,
        config,
        run_dir=run_dir,
        recipe_digest=recipe_digest,
        pad_id=pad_id,
        observer=observer,
        lr_at=lr_at,
    )
    end = plan.num_steps if stop_after is None else min(stop_after, plan.num_steps)
    if config.early_stopping is not None and evaluate is None:
        raise TrainingError(
            "early stopping has no held-out loss to look at",
            expected="rows to measure it on",
            do="name them in data.eval, or leave train.early_stopping out",
        )
    with (
        blocks_apart() if config.compact_heap else nullcontext(),
        closing(run),
        # Before the checkpoint is put back: which forwards are ours is found out with numbers,
        # and they must be the same ones in every sitting.
        computed_as(model, config, trial=run.backward, say=observer.said) as computed,
    ):
        run.resume()
        guard = MemoryGuard(run, record=record)
        if (packing_facts := plan.packing_facts()) is not None:
            observer.said(str(packing_facts))
        with (
            stop_request() as stop,
            RunLog(run_dir / "log.jsonl", from_step=run.state.step, say=observer.said) as log,
            guard,
        ):
            if run.state.step < end and not run.is_done:
                guard.prepare()
                if packing:
                    prove_packing(model, plan, pad_id=pad_id, record=record)
            observer.started(run.state.step, plan.num_steps)
            while run.state.step < end and not run.is_done:
                report = guard.step()
                log.write(**report.line())
                for event in (report.event, *guard.take_events()):
                    if event is not None:
                        log.write(step=report.step, **event)
                observer.stepped(report)
                step = report.step
                last, best = step >= end, False
                if evaluate is not None and (last or _due(step, config.eval_every)):
                    with run.measured():
                        loss = evaluate()
                    log.write(step=step, eval_loss=loss if math.isfinite(loss) else None)
                    observer.evaluated(step, loss)
                    # Where a sweep looks in (`stop_after`), the run itself would not have looked.
                    if _due(step, config.eval_every) or step == plan.num_steps:
                        best = run.judge(loss)
                        last = last or run.is_done
                if sample is not None and not last and _due(step, config.sample_every):
                    with run.measured():
                        samples = sample()
                    log.write(step=step, samples=samples)
                    for one in samples:
                        observer.said(f"step {step}: {one['prompt']} → {one['output']}")
                if last or best or stop.asked or _due(step, config.save_every):
                    _save(run, log, stop)
                if stop.asked and not last:
                    raise InterruptedRunError(
                        f"stopped after step {step} of {plan.num_steps}",
                        where=run_dir / "checkpoints" / f"step-{run.saved_step:06d}",
                        do="run the same command again to go on",
                    )
    return _result(run, run.take_result() if run.is_done else run.state.step, computed)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _save(run: TrainRun, log: RunLog, stop: StopRequest) -> None:
    def save() -> Path:
        log.sync()
        return run.save()

    asked_before = stop.asked
    save_patiently(
        save,
        folder=run.run_dir / "checkpoints",
        num_bytes=run.checkpoint_bytes,
        retries=run.config.save_retries,
        wait_seconds=run.config.save_wait_seconds,
        good="from its beginning" if run.saved_step is None else f"after step {run.saved_step}",
        say=run.observer.said,
        stopped=lambda: stop.asked and not asked_before,
    )


def _result(run: TrainRun, adapter_step: int, computed: ComputeReport) -> TrainResult:
    state = run.state
    return TrainResult(
        steps=state.step,
        epochs=run.plan.epoch_of(state.step),
        num_tokens=state.num_tokens,
        num_targets=state.num_targets,
        seconds=state.seconds,
        tokens_per_second=state.num_tokens / max(state.seconds, 1e-9),
        first_loss=state.first_loss if state.first_loss is not None else 0.0,
        final_loss=state.last_loss if state.last_loss is not None else 0.0,
        num_skipped=state.num_skipped,
        num_spikes=state.num_spikes,
        adapter_step=adapter_step,
        best_step=state.best_step,
        best_loss=state.best_loss,
        stopped_early=state.stopped_early,
        computed=computed.to_dict(),
    )
