"""Base and tuned model side by side: the same rows asked of both, the same text read by both.

Of an adapter the base is the same model with the adapter switched off, so that the comparison is
of nothing but the adapter (`ince.recipe.tuned`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ince.data import Batch, Conversation, DataConfig, Message, read_source
from ince.data.dataset import convert_source
from ince.evaluate import (
    LossResult,
    TextLoss,
    bits_per_byte,
    chrf,
    exact_match,
    heldout_loss,
)
from ince.evaluate.comparison import compare
from ince.infer import generate
from ince.recipe.tuned import Tuned

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Answers",
    "Question",
    "Scorer",
    "answer_both",
    "chrf_scores",
    "compare_answers",
    "compare_loss",
    "compare_text",
    "exact_match_scores",
    "questions_of",
    "read_questions",
    "samples",
]

Progress = Callable[[str, int, int], None]
Scorer = Callable[[Sequence["Question"], Sequence[str]], list[float]]
"""Questions and the answers to them → a score for each."""


@dataclass(frozen=True)
class Question:
    """A conversation up to its last reply, and that reply.

    Attributes:
        turns: what the model is given; the user's turn is last.
        gold: the right answer.
        task: rows of one task are scored together.
        echo: what an answer that only repeats the question would be.
    """

    turns: tuple[Message, ...]
    gold: str
    task: str
    echo: str

    @property
    def prompt(self) -> str:
        """The user's last words."""
        return self.turns[-1].content


@dataclass(frozen=True)
class Answers:
    """What both models answered, in the order of the questions."""

    questions: tuple[Question, ...]
    base: tuple[str, ...]
    tuned: tuple[str, ...]

    def of_task(self, task: str) -> "Answers":
        """Those of one task."""
        kept = [i for i, question in enumerate(self.questions) if question.task == task]
        return Answers(
            tuple(self.questions[i] for i in kept),
            tuple(self.base[i] for i in kept),
            tuple(self.tuned[i] for i in kept),
        )


def questions_of(conversations: Sequence[Conversation], *, task: str = "answers") -> list[Question]:
    """Each conversation that ends with a reply to a user, as a question."""
    questions: list[Question] = []
    for conversation in conversations:
        *turns, last = conversation.messages
        if last.role == "assistant" and turns and turns[-1].role == "user":
            questions.append(Question(tuple(turns), last.content, task, turns[-1].content))
    return questions


def read_questions(
    path: str | Path, config: DataConfig, *, task: str = "answers"
) -> list[Question]:
    """The conversations of a data file as questions, read as `config` says; none in plain text.

    Raises:
        DataError: the file cannot be read, or its rows have no form that is known.
    """
    converted = convert_source(read_source(path), config.format)
    conversations = [
        item.with_system(config.system)
        for _, item in converted.items
        if isinstance(item, Conversation)
    ]
    return questions_of(conversations, task=task)


def answer_both(
    tuned: Tuned,
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress,
) -> Answers:
    """Greedy answers of base and tuned model to the same questions."""
    answers: dict[str, tuple[str, ...]] = {}
    for who, side in tuned.sides():
        with side as model:
            generations = generate(
                model,
                tokenizer,
                [question.turns for question in questions],
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                progress=lambda done, total, who=who: progress(f"{who} answers", done, total),
            )
        answers[who] = tuple(generation.text.strip() for generation in generations)
    return Answers(tuple(questions), answers["base"], answers["tuned"])


def exact_match_scores(questions: Sequence[Question], answers: Sequence[str]) -> list[float]:
    """1 for each answer that is the right one."""
    return [
        float(exact_match(answer, question.gold))
        for question, answer in zip(questions, answers, strict=True)
    ]


def chrf_scores(questions: Sequence[Question], answers: Sequence[str]) -> list[float]:
    """chrF of each answer, 0 to 100."""
    return list(chrf(answers, [question.gold for question in questions]).per_row)


def compare_answers(
    answers: Answers,
    name: str,
    scorer: Scorer,
    *,
    label: str,
    group: str,
    unit: str,
    weights: Sequence[float] | None = None,
) -> dict[str, object]:
    """Score both models' answers, and the echo, by one scorer."""
    questions = answers.questions
    return compare(
        name,
        label=label,
        group=group,
        unit=unit,
        higher_is_better=True,
        base=scorer(questions, answers.base),
        tuned=scorer(questions, answers.tuned),
        echo=scorer(questions, [question.echo for question in questions]),
        weights=weights,
    )


def compare_loss(
    tuned: Tuned, batches: Sequence[Batch], *, progress: Progress
) -> tuple[dict[str, object], dict[str, object]]:
    """Held-out loss, and the perplexity that goes with it."""
    found: dict[str, LossResult] = {}
    for who, side in tuned.sides():
        with side as model:
            found[who] = heldout_loss(
                model,
                batches,
                progress=lambda done, who=who: progress(f"{who} held-out loss", done, len(batches)),
            )
    base, after = found["base"], found["tuned"]
    loss = compare(
        "heldout_loss",
        label="held-out loss",
        group="held-out rows",
        unit="nats",
        higher_is_better=False,
        base=[document.loss for document in base.documents],
        tuned=[document.loss for document in after.documents],
        weights=[float(document.num_targets) for document in base.documents],
    )
    # An interval of the loss is one of the perplexity's logarithm, so none is given twice.
    perplexity: dict[str, object] = {
        **loss,
        "name": "perplexity",
        "label": "held-out perplexity",
        "unit": "",
        "base": base.perplexity,
        "tuned": after.perplexity,
        "difference": after.perplexity - base.perplexity,
        "low": None,
        "high": None,
    }
    return loss, perplexity


def compare_text(
    tuned: Tuned,
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    name: str = "english_bits_per_byte",
    label: str = "English, bits per byte",
    progress: Progress,
) -> dict[str, object]:
    """What reading some texts costs both models: what was forgotten."""
    found: dict[str, TextLoss] = {}
    for who, side in tuned.sides():
        with side as model:
            found[who] = bits_per_byte(
                model,
                tokenizer,
                texts,
                batch_size=1,  # a window's logits over a vocabulary of 50,000 take 100 MB
                progress=lambda done, total, who=who: progress(f"{who} English", done, total),
            )
    return compare(
        name,
        label=label,
        group="english",
        unit="bits/byte",
        higher_is_better=False,
        base=found["base"].per_text,
        tuned=found["tuned"].per_text,
        weights=[float(size) for size in found["base"].sizes],
    )


def samples(answers: Answers, *, limit: int) -> list[Mapping[str, object]]:
    """Lines of ``samples.jsonl``: the first answers of each task, in turn."""
    by_task: dict[str, list[Mapping[str, object]]] = {}
    for question, base, tuned in zip(answers.questions, answers.base, answers.tuned, strict=True):
        by_task.setdefault(question.task, []).append(
            {
                "task": question.task,
                "prompt": question.prompt,
                "expected": question.gold,
                "base": base,
                "tuned": tuned,
                "base_right": exact_match(base, question.gold),
                "tuned_right": exact_match(tuned, question.gold),
            }
        )
    chosen: list[Mapping[str, object]] = []
    for place in range(max((len(rows) for rows in by_task.values()), default=0)):
        chosen += [rows[place] for rows in by_task.values() if place < len(rows)]
    return chosen[:limit]
