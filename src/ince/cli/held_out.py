"""Held-out rows, what one model reaches on them, and two models side by side.

A run measures itself through `ince.recipe.measure`, where base and adapter are one model. Here
the two sides may also be two models, one in memory after the other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ince.data import Batch, DataConfig
    from ince.evaluate import LossResult, TextLoss
    from ince.recipe.measure import Question

__all__ = ["HeldOut", "Limits", "Side", "alone", "measure", "metrics", "read_held_out"]

Report = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""

_ROWS_AT_ONCE = 4
_GROUP = "held-out rows"


@dataclass(frozen=True)
class HeldOut:
    """What both sides are measured on.

    Attributes:
        batches: the rows, packed, for the loss.
        questions: rows to be answered; none for plain text.
        passages: a text cut at its paragraphs, for bits per byte; none without one.
        report: the data file as a run record shows it.
    """

    batches: tuple["Batch", ...]
    questions: tuple["Question", ...]
    passages: tuple[str, ...]
    report: dict[str, object]


@dataclass(frozen=True)
class Side:
    """What one model reached, in the order of the batches, questions and passages."""

    loss: "LossResult"
    answers: tuple[str, ...]
    text: "TextLoss | None"


@dataclass(frozen=True)
class Limits:
    """How answers are generated: their length, and how many at a time."""

    max_new_tokens: int
    batch_size: int


def read_held_out(
    config: "DataConfig",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    num_rows: int,
    english: Path | None,
) -> HeldOut:
    """Read the rows of `config.train`, and choose those that are to be answered.

    Args:
        config: the file, and how its rows are read.
        tokenizer: of the model.
        num_rows: rows to answer.
        english: a text file for bits per byte.

    Raises:
        DataError: no usable rows, or no text.
        TemplateError: the model cannot render the rows.
    """
    from ince.data import collate, epoch_order, load_split, pack_rows
    from ince.evaluate import read_passages
    from ince.recipe.measure import read_questions

    split = load_split(config.train, config, tokenizer)
    examples = split.examples
    rows = pack_rows(
        examples, range(len(examples)), config.max_length, share=config.share_beginnings
    )
    pad_id = tokenizer.pad_token_id
    batches = tuple(
        collate(rows[start : start + _ROWS_AT_ONCE], pad_id if isinstance(pad_id, int) else 0)
        for start in range(0, len(rows), _ROWS_AT_ONCE)
    )
    questions = read_questions(config.train, config, task=_GROUP) if num_rows else []
    # Spread over the file, and the same ones every time.
    chosen = sorted(epoch_order(len(questions), seed=0, epoch=0)[:num_rows])
    return HeldOut(
        batches=batches,
        questions=tuple(questions[index] for index in chosen),
        passages=() if english is None else tuple(read_passages(english)),
        report=split.report.to_dict(),
    )


def measure(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    held_out: HeldOut,
    limits: Limits,
    name: str,
    report: Report,
) -> Side:
    """Held-out loss, answers and bits per byte of one model, which is left as it was.

    Args:
        model: a causal language model, with an adapter on it or without.
        tokenizer: its own.
        held_out: what to measure on.
        limits: of the answers.
        name: of this side, for progress.
        report: told how far it is.
    """
    from ince.evaluate import bits_per_byte, heldout_loss
    from ince.infer import generate

    loss = heldout_loss(
        model,
        held_out.batches,
        progress=lambda done: report(f"{name}: loss", done, len(held_out.batches)),
    )
    answers = generate(
        model,
        tokenizer,
        [question.turns for question in held_out.questions],
        max_new_tokens=limits.max_new_tokens,
        batch_size=limits.batch_size,
        progress=lambda done, total: report(f"{name}: answers", done, total),
    )
    text = None
    if held_out.passages:
        text = bits_per_byte(
            model,
            tokenizer,
            held_out.passages,
            progress=lambda done, total: report(f"{name}: English", done, total),
        )
    return Side(loss, tuple(answer.text.strip() for answer in answers), text)


def _loss_metrics(base: Side, tuned: Side) -> list[dict[str, object]]:
    """Held-out loss and perplexity; none for models that cut the rows into other tokens."""
    from ince.evaluate.comparison import compare

    pairs = list(
        zip(
            sorted(base.loss.documents, key=lambda document: document.source),
            sorted(tuned.loss.documents, key=lambda document: document.source),
            strict=False,
        )
    )
    same = len(base.loss.documents) == len(tuned.loss.documents) and all(
        (before.source, before.num_targets) == (after.source, after.num_targets)
        for before, after in pairs
    )
    if not same:
        return []
    loss = compare(
        "heldout_loss",
        label="held-out loss",
        group=_GROUP,
        unit="nats",
        higher_is_better=False,
        base=[before.loss for before, _ in pairs],
        tuned=[after.loss for _, after in pairs],
        weights=[float(before.num_targets) for before, _ in pairs],
    )
    # Its interval is the loss's: perplexity is exp(loss), row by row it is no mean.
    perplexity: dict[str, object] = {
        **loss,
        "name": "perplexity",
        "label": "held-out perplexity",
        "unit": "",
        "base": base.loss.perplexity,
        "tuned": tuned.loss.perplexity,
        "difference": tuned.loss.perplexity - base.loss.perplexity,
        "low": None,
        "high": None,
    }
    return [loss, perplexity]


def metrics(held_out: HeldOut, base: Side, tuned: Side) -> list[dict[str, object]]:
    """The metrics of an ``eval.json``; see `ince.evaluate.comparison`."""
    from ince.evaluate.comparison import compare
    from ince.recipe.measure import (
        Answers,
        chrf_scores,
        compare_answers,
        exact_match_scores,
    )

    found = _loss_metrics(base, tuned)
    if held_out.questions:
        answers = Answers(held_out.questions, base.answers, tuned.answers)
        found += [
            compare_answers(
                answers,
                "exact_match",
                exact_match_scores,
                label="exact match",
                group=_GROUP,
                unit="share",
            ),
            compare_answers(answers, "chrf", chrf_scores, label="chrF", group=_GROUP, unit="chrF"),
        ]
    if base.text is not None and tuned.text is not None:
        found.append(
            compare(
                "english_bits_per_byte",
                label="English, bits per byte",
                group="english",
                unit="bits/byte",
                higher_is_better=False,
                base=base.text.per_text,
                tuned=tuned.text.per_text,
                weights=[float(size) for size in base.text.sizes],
            )
        )
    return found


def alone(found: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """Metrics of a model that has nothing to be compared with."""
    return [{**m, "tuned": None, "difference": None, "low": None, "high": None} for m in found]
