"""A training run between two steps: what it consists of, and what can be done with it.

    resume          put back the newest whole checkpoint
    backward        gradients of the next step's rows; may be called again, cut another way
    step            backward and update; the next step is then due
    save            a checkpoint, from which `resume` goes on to the bit
    take_result     the weights that the run was for, once it is done

What decides how it goes on is in `state`, in the parameters and in the optimizer; the rest
follows from the config, the data and the step. When to evaluate, to save and to stop is the
loop's to say (`ince.train.loop`).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ince.data import Row
from ince.errors import CorruptFileError
from ince.heap import give_back
from ince.optim import (
    PagedOptimizer,
    learning_rate,
    load_optimizer_state,
    lr_ratios,
    set_learning_rate,
    state_tensors,
)
from ince.record import peak_memory_bytes
from ince.train.average import AdapterAverage
from ince.train.best import note_evaluation
from ince.train.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    read_checkpoint,
    remove_old,
    save_checkpoint,
)
from ince.train.config import TrainConfig
from ince.train.loss_guard import is_usable, note_loss, note_skipped
from ince.train.masters import Masters
from ince.train.observer import Observer, StepReport
from ince.train.optimizer import optimizer_of, pages_usage
from ince.train.parameters import fill, trainable
from ince.train.state import TrainState
from ince.train.step import StepGradient, accumulate
from ince.train.steps import StepPlan

__all__ = ["TrainRun"]

_STEPS_BETWEEN_GIVING_BACK = 8

# State, manifest, headers, and what blocks of a file system leave unused.
_CHECKPOINT_REST_BYTES = 64 * 1024


class TrainRun:
    """Model, plan, optimizer and state of one run."""

    def __init__(
        self,
        model: nn.Module,
        plan: StepPlan,
        config: TrainConfig,
        *,
        run_dir: Path,
        recipe_digest: str,
        pad_id: int,
        observer: Observer,
        lr_at: Callable[[int], float] | None = None,
    ) -> None:
        """A run that has not begun.

        Args:
            model: with trainable parameters; the others are left alone.
            plan: which rows each step sees.
            config: budget, optimizer and intervals.
            run_dir: where ``checkpoints/`` is.
            recipe_digest: kept in each checkpoint; one of another recipe is refused.
            pad_id: token that fills short rows.
            observer: is told what a person should know.
            lr_at: the learning rate of a step, in place of the config's schedule.

        Raises:
            TrainingError: nothing to train.
            ConfigError: a pattern of `lr_multipliers` matches nothing.
        """
        self.model = model
        self.plan = plan
        self.config = config
        self.run_dir = run_dir
        self.pad_id = pad_id
        self.observer = observer
        self._lr_at = self._scheduled if lr_at is None else lr_at
        held = trainable(model)
        # Adapters are float32 as they are.
        self._masters = Masters(held if config.method == "full" else {})
        self.parameters = {**held, **self._masters.parameters}
        ratios = lr_ratios(
            model,
            loraplus_lr_ratio=config.loraplus_lr_ratio,
            layer_lr_decay=config.layer_lr_decay,
            lr_multipliers=config.lr_multipliers,
        )
        self.optimizer = optimizer_of(config, self.parameters, lr_ratios=ratios, run_dir=run_dir)
        self.average = (
            None if config.ema_decay is None else AdapterAverage(self.parameters, config.ema_decay)
        )
        self.state = TrainState(recipe_digest, micro_batch_tokens=config.micro_batch_tokens)
        self.saved_step: int | None = None
        """Step of the newest checkpoint, None while there is none."""
        self._whole_checkpoints: set[Path] = set()

    # ------------------------------------------------------------------------------ where it is

    @property
    def is_done(self) -> bool:
        """No step is left, or none is worth its while."""
        return self.state.stopped_early or self.state.step >= self.plan.num_steps

    @property
    def micro_batch_tokens(self) -> int | None:
        """Tokens in one forward, at most; None: all of the step's. Setting it lasts."""
        return self.state.micro_batch_tokens

    @micro_batch_tokens.setter
    def micro_batch_tokens(self, value: int | None) -> None:
        self.state.micro_batch_tokens = value

    # ------------------------------------------------------------------------------------ steps

    def backward(self) -> StepGradient:
        """Gradients of the next step's rows; of parameters and state nothing changes.

        After an error (out of memory, say) it may be called again.
        """
        self.model.train()
        try:
            return accumulate(
                self.model,
                self.plan.rows(self.state.step),
                parameters=self.parameters,
                max_grad_norm=self.config.max_grad_norm,
                micro_batch_tokens=self.micro_batch_tokens,
                pad_id=self.pad_id,
                seed=self.config.seed,
                step=self.state.step,
                neftune_alpha=self.config.neftune_alpha,
            )
        finally:
            self.model.eval()

    def rehearse(self, rows: Sequence[Row]) -> None:
        """Forward and backward of `rows` in one piece, of which nothing remains.

        Gradients are dropped and random numbers put back, so that the run is what it was.
        """
        device = next(iter(self.parameters.values())).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            self.model.train()
            try:
                accumulate(
                    self.model,
                    rows,
                    parameters=self.parameters,
                    max_grad_norm=self.config.max_grad_norm,
                    micro_batch_tokens=None,
                    pad_id=self.pad_id,
                    seed=self.config.seed,
                    step=self.state.step,
                )
            finally:
                self.model.eval()
                for parameter in self.parameters.values():
                    parameter.grad = None

    def step(self, backward: Callable[[], StepGradient] | None = None) -> StepReport:
        """One optimizer step, passed over when its loss or gradient is not finite.

        Args:
            backward: in place of the run's own, which it may call more than once.

        Raises:
            TrainingError: too many were passed over in a row; no parameter was changed.
        """
        state = self.state
        lr = self._lr_at(state.step)
        started = time.monotonic()
        gradient = self.backward() if backward is None else backward()
        usable = is_usable(gradient)
        if usable:
            set_learning_rate(self.optimizer, lr)
            self.optimizer.step()
            self._masters.publish()
            if self.average is not None:
                self.average.update(state.step - state.num_skipped)
        self.optimizer.zero_grad(set_to_none=True)
        seconds = time.monotonic() - started
        if state.step % _STEPS_BETWEEN_GIVING_BACK == 0:
            give_back()
        state.seconds += seconds
        event = self._count(gradient) if usable else self._count_skipped(gradient)
        state.step += 1
        return StepReport(
            step=state.step,
            loss=gradient.loss,
            lr=lr,
            grad_norm=gradient.grad_norm,
            num_tokens=gradient.num_tokens,
            num_targets=gradient.num_targets,
            total_tokens=state.num_tokens,
            total_targets=state.num_targets,
            seconds=seconds,
            peak_bytes=peak_memory_bytes(),
            num_skipped=state.num_skipped,
            skipped=not usable,
            best_step=state.best_step,
            best_loss=state.best_loss,
            event=event,
            pages=pages_usage(self.optimizer),
        )

    def close(self) -> None:
        """Let go of the optimizer's pages and their file; no step can follow."""
        if isinstance(self.optimizer, PagedOptimizer):
            self.optimizer.close()

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Inside, the model has the weights that evaluations are of: the average, if any."""
        if self.average is None:
            yield
            return
        try:
            with self.average.in_place():
                self._masters.publish()
                yield
        finally:
            self._masters.publish()

    def judge(self, loss: float) -> bool:
        """Take in the held-out loss after the latest step; returns whether to keep this step.

        It is kept when it is the best so far and the config keeps the best. When patience has
        run out, the run is done.
        """
        early_stopping = self.config.early_stopping
        is_best = note_evaluation(self.state, loss, early_stopping=early_stopping)
        if self.state.stopped_early:
            self.observer.said(
                f"step {self.state.step}: no gain in held-out loss in "
                f"{self.state.evaluations_without_gain} evaluations, so training ends"
            )
        return is_best and self.config.keeps_best

    def _scheduled(self, step: int) -> float:
        return learning_rate(
            step,
            num_steps=self.plan.num_steps,
            peak=self.config.lr,
            schedule=self.config.schedule,
            warmup_ratio=self.config.warmup_ratio,
        )

    def _count(self, gradient: StepGradient) -> dict[str, object] | None:
        state = self.state
        state.num_tokens += gradient.num_tokens
        state.num_targets += gradient.num_targets
        state.first_loss = gradient.loss if state.first_loss is None else state.first_loss
        state.last_loss = gradient.loss
        event = note_loss(state, gradient)
        if event is not None and state.num_spikes == 1:
            self.observer.said(
                f"step {state.step + 1}: the loss jumped to {gradient.loss:.3f}, above "
                f"{event['limit']:.3f}; log.jsonl names the rows, of later jumps too"
            )
        return event

    def _count_skipped(self, gradient: StepGradient) -> dict[str, object]:
        event = note_skipped(self.state, gradient, max_in_a_row=self.config.max_skipped_steps)
        if self.state.num_skipped == 1:
            self.observer.said(
                f"step {self.state.step + 1}: {event['what']}; it is passed over, and "
                "log.jsonl names the rows, of later ones too"
            )
        return event

    # ------------------------------------------------------------------------------ checkpoints

    def resume(self) -> None:
        """Put back the newest whole checkpoint, where there is one.

        Raises:
            CorruptFileError: checkpoints exist and none is whole, or they are of another recipe.
        """
        checkpoint = latest_checkpoint(self.run_dir, warn=self.observer.said)
        if checkpoint is None:
            return
        if checkpoint.state.recipe_digest != self.state.recipe_digest:
            raise CorruptFileError(
                "the checkpoints in this folder are of another recipe, base or data",
                where=checkpoint.folder,
                do="put back the data as they were, choose another output folder, or start "
                "again with --fresh",
            )
        self._restore(checkpoint)
        self.observer.said(f"going on after step {self.state.step} of {self.plan.num_steps}")

    def _restore(self, checkpoint: Checkpoint) -> None:
        saved = checkpoint.tensors.get(self._group, {})
        fill(self.parameters, saved, where=checkpoint.folder)
        self._masters.publish()
        if self.average is not None:
            saved = checkpoint.tensors.get("ema", {})
            fill(self.average.tensors, saved, where=f"{checkpoint.folder}, average")
        if checkpoint.tensors["optimizer"]:
            load_optimizer_state(self.optimizer, self.parameters, checkpoint.tensors["optimizer"])
        self.state = checkpoint.state
        self.saved_step = self.state.step
        self._whole_checkpoints.add(checkpoint.folder)

    @property
    def _group(self) -> str:
        """What a checkpoint calls the parameters."""
        return "model" if self.config.method == "full" else "adapter"

    @property
    def checkpoint_bytes(self) -> int:
        """What a checkpoint takes on disk, about."""
        moments = [m for state in self.optimizer.state.values() for m in state.values()]
        averages = [] if self.average is None else [*self.average.tensors.values()]
        tensors = [*self.parameters.values(), *averages]
        tensors += [m for m in moments if isinstance(m, Tensor)]
        held = sum(t.numel() * t.element_size() for t in tensors)
        paged = self.optimizer.state_bytes if isinstance(self.optimizer, PagedOptimizer) else 0
        return held + paged + _CHECKPOINT_REST_BYTES

    def save(self) -> Path:
        """Write a checkpoint whole, then remove those that are too many; returns its folder.

        Raises:
            DiskFullError: no space; earlier checkpoints are as they were.
            CorruptFileError: it does not read back; the same.
        """
        folder = save_checkpoint(
            self.run_dir,
            tensors={
                self._group: {n: p.detach().contiguous() for n, p in self.parameters.items()},
                "optimizer": state_tensors(self.optimizer, self.parameters),
                **({} if self.average is None else {"ema": self.average.tensors}),
            },
            state=self.state,
        )
        self.saved_step = self.state.step
        self._whole_checkpoints.add(folder)
        remove_old(
            self.run_dir,
            keep=self.config.keep_checkpoints,
            keep_best=self.config.keeps_best,
            whole=self._whole_checkpoints,
        )
        return folder

    # -------------------------------------------------------------------------------- the result

    def take_result(self) -> int:
        """Put the run's result into the model, once it is done; returns the step it is of.

        That is the best step where the config keeps it, the last one otherwise; of either, the
        average where there is one. The state and
        the checkpoints stay as they are: a run that is started again ends in the same way.
        """
        step = self._fill_result()
        self._masters.publish()
        return step

    def _fill_result(self) -> int:
        state = self.state
        if self.average is not None:
            fill(self.parameters, self.average.tensors, where="the average")
        if not self.config.keeps_best or state.best_step in (None, state.step):
            return state.step
        try:
            best = read_checkpoint(self.run_dir, state.best_step)
            group = self._group if self.average is None else "ema"
            fill(self.parameters, best.tensors.get(group, {}), where=best.folder)
        except CorruptFileError as error:
            self.observer.said(
                f"the checkpoint of the best step, {state.best_step}, cannot be used, and the "
                f"last step is the result: {error.what} ({error.where})"
            )
            return state.step
        return state.best_step
