"""A run while it happens: the one place where a recipe's descriptions become objects.

`Session` opens the run folder, loads the base, reads the data, lets an adapter or every weight
learn, and saves. What is measured afterwards is its caller's choice, and so is the order; every
step writes its facts into the run record.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from rich.console import Console
from torch import nn

from ince.data import Batch, DataConfig, Split, collate, load_split, pack_rows, single_rows
from ince.errors import OutputError
from ince.evaluate import heldout_loss
from ince.files import write_text
from ince.infer import Parts, generate
from ince.models import ResolvedModel, choose_attention, load_model, packed_row_attention, resolve
from ince.quant import expanded, packed_modules
from ince.recipe.plan import note_truth, plan_run
from ince.recipe.progress import RunProgress
from ince.recipe.schema import Recipe
from ince.recipe.tuned import AdapterTuned, FullTuned, Tuned
from ince.record import RunRecord
from ince.train import TrainResult, train
from ince.train.sinks import reporting, require_installed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ince.recipe.measure import Question

__all__ = ["ReadSplit", "Session", "open_run"]

# What a run folder may hold; anything else in it is not ours to touch.
_OWN = {
    "adapter",
    "checkpoints",
    "data",
    "eval.json",
    "log.jsonl",
    "model",
    "recipe.yaml",
    "report.html",
    "run.json",
    "samples.jsonl",
    "sinks",
}


def _fresh(folder: Path) -> None:
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in _OWN)
    if foreign:
        raise OutputError(
            "the output folder holds what is not of a run, so it cannot be cleared",
            where=folder,
            got=", ".join(foreign[:5]),
            do="choose another output folder",
        )
    for path in folder.iterdir():
        if path.name == "data":
            continue  # instructions that a demo built, read by the run to come
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def open_run(recipe: Recipe, *, resume: bool) -> RunRecord:
    """The record of the run in the recipe's output folder, new or to be continued.

    Raises:
        OutputError: the folder holds the run of another recipe, or something else.
        CorruptFileError: its record cannot be read.
    """
    folder = recipe.output_folder
    if folder.exists() and not folder.is_dir():
        raise OutputError("the output is a file", where=folder, expected="a folder")
    has_run = (folder / "run.json").is_file()
    if folder.is_dir() and not resume:
        _fresh(folder)
        has_run = False
    if has_run:
        record = RunRecord.read(folder)
        if record.get("recipe_digest") != recipe.digest():
            raise OutputError(
                "the output folder holds the run of another recipe",
                where=folder,
                got=f"recipe {str(record.get('recipe_digest'))[:12]}",
                expected=f"recipe {recipe.digest()[:12]}, or an empty folder",
                do="choose another output (output=runs/other), or start again with --fresh",
            )
        return record
    if folder.is_dir():
        foreign = sorted(path.name for path in folder.iterdir() if path.name != "data")
        if foreign:
            raise OutputError(
                "the output folder is not empty, and holds no run",
                where=folder,
                got=", ".join(foreign[:5]),
                do="choose another output folder",
            )
    record = RunRecord.create(folder, recipe=recipe.to_dict(), recipe_digest=recipe.digest())
    write_text(folder / "recipe.yaml", recipe.to_yaml())
    return record


class ReadSplit(Protocol):
    """Reads a data file and encodes its rows, as `load_split` does."""

    def __call__(
        self,
        path: str,
        config: DataConfig,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Split:
        """The rows of `path` as examples, and what became of each."""
        ...


class Session:
    """Base, adapter and data of one run, ready to train and to be measured."""

    def __init__(
        self,
        recipe: Recipe,
        record: RunRecord,
        *,
        console: Console,
        progress: RunProgress | None = None,
        read_split: ReadSplit = load_split,
    ) -> None:
        """Load what the recipe names.

        Args:
            recipe: of the run.
            record: of the run, in its folder.
            console: for progress.
            progress: in place of the console's own.
            read_split: in place of reading the data anew.

        Raises:
            InputError: the model, the data or the adapter's targets cannot be used, or a sink of
                `train.report_to` is not installed.
        """
        self.recipe = recipe
        self.record = record
        self.console = console
        self.progress = RunProgress(console) if progress is None else progress
        self.folder = recipe.output_folder
        self._read_split = read_split
        require_installed(recipe.train.report_to)
        with record.phase("load"):
            self.tuned, self.tokenizer = self._load_model()
        with record.phase("data"):
            self.train_split = self._load_split(recipe.data.train)
            self.eval_split = (
                None if recipe.data.eval is None else self._load_split(recipe.data.eval)
            )
            record["data"] = {
                "train": self.train_split.report.to_dict(),
                "eval": None if self.eval_split is None else self.eval_split.report.to_dict(),
            }
        for name, split in (("training", self.train_split), ("evaluation", self.eval_split)):
            if split is not None:
                self._say_split(name, split)

    # -------------------------------------------------------------------------------- loading

    @property
    def model(self) -> nn.Module:
        """The one that learns."""
        return self.tuned.model

    def _load_model(self) -> tuple[Tuned, "PreTrainedTokenizerBase"]:
        section = self.recipe.model
        with self.progress.bars() as report:
            resolved = resolve(section.base, section.revision, convert=False, progress=report)
        base, tokenizer = self._load_base(resolved)
        # The adapter's first values are part of the recipe: they follow from its seed.
        torch.manual_seed(self.recipe.train.seed)
        tuned: Tuned
        if self.recipe.train.method == "full":
            tuned = FullTuned(base, lambda: self._load_base(resolved)[0], name=resolved.name)
        else:
            tuned = AdapterTuned(base, self.recipe.lora, name=resolved.name)
        facts = tuned.facts
        self.record["base"] = {
            "reference": section.base,
            "name": resolved.name,
            "kind": resolved.kind,
            "digest": resolved.digest,
            "license": resolved.license,
            "num_parameters": tuned.num_base,
            "weight_bytes": _weight_bytes(tuned),
            "compute_dtype": str(base.dtype).removeprefix("torch."),
            "quantization": None
            if section.quantize is None
            else {
                "kind": section.quantize,
                "blocksize": section.blocksize,
                "double_quant": section.double_quant,
                "scale_search": section.scale_search,
                "quantize_head": section.quantize_head,
            },
        }
        self.record[tuned.section] = facts
        num_trainable, num_total = facts["num_trainable"], facts["num_total"]
        assert isinstance(num_trainable, int)
        assert isinstance(num_total, int)
        self.progress.say(
            f"{resolved.name}: {tuned.num_base:,} parameters, "
            f"{num_trainable:,} to train ({100 * num_trainable / num_total:.2f}%)"
        )
        return tuned, tokenizer

    def _load_base(
        self, resolved: ResolvedModel
    ) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
        section = self.recipe.model
        with self.progress.bars() as report:
            model, tokenizer = load_model(
                resolved,
                quantization=section.to_nf4_config(),
                dtype=section.torch_dtype,
                device=section.device,
                progress=report,
            )
        choose_attention(model, section.attention, training=True)
        return model, tokenizer

    def _load_split(self, path: str) -> Split:
        with self.progress.bars() as report:
            name = Path(path).name
            return self._read_split(
                path,
                self.recipe.data,
                self.tokenizer,
                progress=lambda done, total: report(f"reading {name}", done, total),
            )

    def _say_split(self, name: str, split: Split) -> None:
        self.progress.say(f"{name} data: {split.report.summary()}")

    # ------------------------------------------------------------------------------- training

    @property
    def pad_id(self) -> int:
        """The token that fills short rows; it carries no loss and is attended by nobody."""
        pad_id = self.tokenizer.pad_token_id
        return pad_id if isinstance(pad_id, int) else 0

    def eval_batches(self) -> list[Batch]:
        """The held-out rows in batches, packed as the training rows are."""
        if self.eval_split is None:
            return []
        examples = self.eval_split.examples
        config, data = self.recipe.train, self.recipe.data
        order = range(len(examples))
        rows = (
            pack_rows(examples, order, data.max_length, share=data.share_beginnings)
            if data.packing
            else single_rows(examples, order)
        )
        # A forward without gradients takes little; the rectangle of a step fits for certain.
        per_batch = max(
            1,
            (config.micro_batch_tokens or config.batch_tokens)
            // max(row.num_tokens for row in rows),
        )
        return [
            collate(rows[start : start + per_batch], pad_id=self.pad_id)
            for start in range(0, len(rows), per_batch)
        ]

    def train(
        self,
        *,
        questions: Sequence["Question"] = (),
        stop_after: int | None = None,
        lr_at: Callable[[int], float] | None = None,
    ) -> TrainResult:
        """Train, from the newest checkpoint where there is one; then save the result.

        Args:
            questions: of the held-out rows; a few are answered at `train.sample_every`.
            stop_after, lr_at: of `ince.train.train`.
        """
        config = self.recipe.train
        batches = self.eval_batches()
        self.model.eval()
        loss_parts = Parts(what="the held-out loss", say=self.progress.say)
        sample_parts = Parts(what="writing samples", say=self.progress.say)

        def evaluate() -> float:
            return heldout_loss(self.tuned.plain, batches, parts=loss_parts).loss

        def sample() -> list[dict[str, str]]:
            asked = list(questions[:3])
            answers = generate(
                self.tuned.plain,
                self.tokenizer,
                [question.turns for question in asked],
                max_new_tokens=self.recipe.evaluate.max_new_tokens,
                parts=sample_parts,
            )
            return [
                {"prompt": q.prompt, "expected": q.gold, "output": answer.text.strip()}
                for q, answer in zip(asked, answers, strict=True)
            ]

        planned = plan_run(self)
        held = expanded(self.model) if self.recipe.model.expand else nullcontext()
        with (
            self.record.phase("train"),
            held,
            packed_row_attention(self.tuned.plain),
            self.progress.training() as shown,
            reporting(
                shown, config.report_to, run_dir=self.folder, config=self.recipe.portable()
            ) as observer,
        ):
            result = train(
                self.model,
                self.train_split.examples,
                config,
                run_dir=self.folder,
                recipe_digest=self._run_digest(),
                packing=self.recipe.data.packing,
                share_beginnings=self.recipe.data.share_beginnings,
                max_length=self.recipe.data.max_length,
                pad_id=self.pad_id,
                observer=observer,
                evaluate=evaluate if batches else None,
                sample=sample if questions else None,
                stop_after=stop_after,
                lr_at=lr_at,
                record=self.record,
            )
        self.record["training"] = {
            "steps": result.steps,
            "epochs": round(result.epochs, 4),
            "num_tokens": result.num_tokens,
            "num_targets": result.num_targets,
            "seconds": round(result.seconds, 3),
            "tokens_per_second": round(result.tokens_per_second, 2),
            "first_loss": result.first_loss,
            "final_loss": result.final_loss,
            "computed": result.computed,
            "num_skipped": result.num_skipped,
            "num_spikes": result.num_spikes,
            "adapter_step": result.adapter_step,
            "best_step": result.best_step,
            "best_loss": result.best_loss,
            "stopped_early": result.stopped_early,
        }
        note_truth(self, planned, result)
        section = self.tuned.section
        digest = self.tuned.save(self.folder / section, self.tokenizer)
        self.record[section] = {**self.record[section], "digest": digest}
        return result

    def _run_digest(self) -> str:
        """Of the recipe and of the bytes it was given: a checkpoint fits no other run."""
        parts = [
            self.recipe.digest(),
            self.record["base"]["digest"],
            self.train_split.report.digest,
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _weight_bytes(tuned: Tuned) -> int:
    """Bytes of the base's weights as they are held."""
    is_base = tuned.section == "model"
    seen = {id(p): p for p in tuned.model.parameters() if is_base or not p.requires_grad}
    plain = sum(p.numel() * p.element_size() for p in seen.values())
    packed = packed_modules(tuned.model).values()
    return plain + sum(module.weight_bytes for module in packed)
