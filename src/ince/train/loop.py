"""The training loop: steps, evaluation and samples at intervals, checkpoints, a clean stop.

It knows a model whose trainable parameters are adapters, examples, a config and a run
folder. It does not know where any of them came from, nor what happens afterwards.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from ince.data.example import Example
from ince.errors import CorruptFileError, InterruptedRunError, TrainingError
from ince.heap import give_back
from ince.optim import (
    build_optimizer,
    learning_rate,
    load_optimizer_state,
    lora_plus_ratios,
    optimizer_state,
)
from ince.record import peak_memory_bytes
from ince.train.checkpoint import TrainState, latest_checkpoint, remove_old, save_checkpoint
from ince.train.config import TrainConfig
from ince.train.interrupt import stop_request
from ince.train.log import RunLog
from ince.train.step import StepResult, train_step
from ince.train.steps import StepPlan

__all__ = ["Observer", "TrainResult", "train"]

_STEPS_BETWEEN_GIVING_BACK = 8


class Observer(Protocol):
    """What the loop tells while it runs; a progress bar, usually."""

    def started(self, first_step: int, num_steps: int) -> None:
        """The run begins (or goes on) at `first_step` of `num_steps`."""
        ...

    def stepped(self, step: int, result: StepResult, tokens_per_second: float) -> None:
        """A step is done; `step` counts from 1."""
        ...

    def said(self, line: str) -> None:
        """Something a person should read."""
        ...


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


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise TrainingError(
            "the model has nothing to train",
            expected="parameters with requires_grad",
            do="attach an adapter first: ince.get_peft_model(model, ince.LoraConfig(...))",
        )
    return found


def _restore(parameters: dict[str, nn.Parameter], saved: dict[str, Tensor], folder: Path) -> None:
    if saved.keys() != parameters.keys():
        wrong = sorted(saved.keys() ^ parameters.keys())
        raise CorruptFileError(
            "a checkpoint has other parameters than this run",
            where=folder,
            got=", ".join(wrong[:5]),
            do="start again with --fresh",
        )
    for name, parameter in parameters.items():
        parameter.data.copy_(saved[name])


def train(
    model: nn.Module,
    examples: Sequence[Example],
    config: TrainConfig,
    *,
    run_dir: Path,
    recipe_digest: str,
    packing: bool,
    max_length: int,
    pad_id: int,
    observer: Observer,
    evaluate: Callable[[], float] | None = None,
    sample: Callable[[], list[dict[str, str]]] | None = None,
) -> TrainResult:
    """Train until the config's budget is used, resuming from the newest whole checkpoint.

    Args:
        model: with trainable parameters; the others are left alone.
        examples: to learn from, in a fixed order.
        config: budget, optimizer and intervals.
        run_dir: where log.jsonl and checkpoints/ are.
        recipe_digest: kept in each checkpoint; one of another recipe is refused.
        packing: several examples to a row.
        max_length: of a row, in tokens.
        pad_id: token that fills short rows.
        observer: is told what happens.
        evaluate: gives the held-out loss; called at intervals.
        sample: gives answers to look at; called at intervals.

    Raises:
        InterruptedRunError: Ctrl-C or SIGTERM; a checkpoint was saved first.
        TrainingError: nothing to train, or a loss that is not finite.
        CorruptFileError: checkpoints exist and none is whole, or they are of another recipe.
    """
    parameters = _trainable(model)
    ratio = config.loraplus_lr_ratio
    plan = StepPlan(
        examples,
        packing=packing,
        max_length=max_length,
        batch_tokens=config.batch_tokens,
        epochs=config.epochs,
        max_steps=config.max_steps,
        seed=config.seed,
    )
    optimizer = build_optimizer(
        parameters,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        lr_ratios=None if ratio is None else lora_plus_ratios(model, ratio),
    )
    state = TrainState(recipe_digest)
    checkpoint = latest_checkpoint(run_dir, warn=observer.said)
    if checkpoint is not None:
        if checkpoint.state.recipe_digest != recipe_digest:
            raise CorruptFileError(
                "the checkpoints in this folder are of another recipe, base or data",
                where=checkpoint.folder,
                do="put back the data as they were, choose another output folder, or start "
                "again with --fresh",
            )
        _restore(parameters, checkpoint.adapter, checkpoint.folder)
        if checkpoint.state.step > 0:
            load_optimizer_state(optimizer, parameters, checkpoint.optimizer)
        state = checkpoint.state
        observer.said(f"going on after step {state.step} of {plan.num_steps}")

    def save() -> None:
        save_checkpoint(
            run_dir,
            adapter={name: p.detach().contiguous() for name, p in parameters.items()},
            optimizer=optimizer_state(optimizer, parameters),
            state=state,
        )
        remove_old(run_dir, keep=config.keep_checkpoints)

    observer.started(state.step, plan.num_steps)
    with (
        stop_request() as stop,
        RunLog(run_dir / "log.jsonl", from_step=state.step) as log,
    ):
        saved_at = state.step if checkpoint is not None else -1
        while state.step < plan.num_steps:
            lr = learning_rate(
                state.step,
                num_steps=plan.num_steps,
                peak=config.lr,
                schedule=config.schedule,
                warmup_ratio=config.warmup_ratio,
            )
            started = time.monotonic()
            model.train()
            result = train_step(
                model,
                plan.rows(state.step),
                parameters=parameters,
                optimizer=optimizer,
                lr=lr,
                max_grad_norm=config.max_grad_norm,
                micro_batch_tokens=config.micro_batch_tokens,
                pad_id=pad_id,
                seed=config.seed,
                step=state.step,
            )
            model.eval()
            seconds = time.monotonic() - started
            if state.step % _STEPS_BETWEEN_GIVING_BACK == 0:
                give_back()
            state.step += 1
            state.num_tokens += result.num_tokens
            state.num_targets += result.num_targets
            state.seconds += seconds
            state.first_loss = result.loss if state.first_loss is None else state.first_loss
            state.last_loss = result.loss
            log.write(
                step=state.step,
                loss=result.loss,
                lr=lr,
                grad_norm=result.grad_norm,
                tokens=state.num_tokens,
                target_tokens=state.num_targets,
                tokens_per_second=result.num_tokens / seconds,
                peak_bytes=peak_memory_bytes(),
            )
            observer.stepped(state.step, result, result.num_tokens / seconds)
            last = state.step == plan.num_steps
            if evaluate is not None and (last or _due(state.step, config.eval_every)):
                eval_loss = evaluate()
                log.write(step=state.step, eval_loss=eval_loss)
                observer.said(f"step {state.step}: held-out loss {eval_loss:.4f}")
            if sample is not None and not last and _due(state.step, config.sample_every):
                samples = sample()
                log.write(step=state.step, samples=samples)
                for one in samples:
                    observer.said(f"step {state.step}: {one['prompt']} → {one['output']}")
            if last or stop.asked or _due(state.step, config.save_every):
                save()
                saved_at = state.step
            if stop.asked and not last:
                raise InterruptedRunError(
                    f"stopped after step {state.step} of {plan.num_steps}",
                    where=run_dir / "checkpoints" / f"step-{saved_at:06d}",
                    do="run the same command again to go on",
                )
    first = state.first_loss if state.first_loss is not None else 0.0
    final = state.last_loss if state.last_loss is not None else 0.0
    return TrainResult(
        steps=state.step,
        epochs=plan.epoch_of(state.step),
        num_tokens=state.num_tokens,
        num_targets=state.num_targets,
        seconds=state.seconds,
        tokens_per_second=state.num_tokens / max(state.seconds, 1e-9),
        first_loss=first,
        final_loss=final,
    )


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
