"""`run_recipe`: from a recipe to a finished, measured and recorded run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from ince.errors import InceError, InterruptedRunError
from ince.evaluate import read_passages
from ince.evaluate.comparison import evaluation
from ince.files import write_json, write_text
from ince.recipe.claim import claimed
from ince.recipe.measure import (
    Question,
    answer_both,
    chrf_scores,
    compare_answers,
    compare_loss,
    compare_text,
    exact_match_scores,
    read_questions,
    samples,
)
from ince.recipe.parity import prove_result
from ince.recipe.schema import Recipe
from ince.recipe.session import Session, open_run
from ince.record import RunRecord

__all__ = ["recorded", "run_recipe", "save_evaluation"]


def run_recipe(recipe: Recipe, *, resume: bool = True, console: Console | None = None) -> RunRecord:
    """Train as the recipe says, measure against the base, prove the result, record it all.

    A run that was cut off goes on; one that is done is returned as it is.

    Args:
        recipe: from `load_recipe`.
        resume: False starts again in the same folder.
        console: for progress; stderr when None.

    Raises:
        InputError: the recipe's model, data or output folder cannot be used, or another
            process is at work in the latter.
        InterruptedRunError: Ctrl-C; a checkpoint was saved.
        ProofError: the merged model does not say what the adapter says, or the saved model not
            what was trained.
    """
    console = Console(stderr=True) if console is None else console
    with claimed(recipe.output_folder):
        record = open_run(recipe, resume=resume)
        if record.get("status") == "done":
            console.print(
                f"{recipe.output_folder} is done already; --fresh starts it again", markup=False
            )
            return record
        with recorded(record):
            session = Session(recipe, record, console=console)
            questions = _questions(recipe)
            session.train(questions=questions)
            with record.phase("evaluate"):
                _measure(session, questions)
            prove_result(session)
    return record


class recorded:  # noqa: N801  a context manager, used as a verb
    """Close the record with what became of the run, error included."""

    def __init__(self, record: RunRecord) -> None:
        self._record = record

    def __enter__(self) -> None:
        self._record["status"] = "running"

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._record.finish("done")
        elif isinstance(error, (InterruptedRunError, KeyboardInterrupt)):
            self._record.finish("interrupted")
        elif isinstance(error, InceError):
            self._record.finish("failed", error.to_dict())
        else:
            self._record.finish("failed", {"type": type(error).__name__, "what": str(error)})


def _questions(recipe: Recipe) -> list[Question]:
    if recipe.data.eval is None or recipe.evaluate.num_samples == 0:
        return []
    return read_questions(recipe.data.eval, recipe.data)[: recipe.evaluate.num_samples]


def _measure(session: Session, questions: Sequence[Question]) -> None:
    recipe = session.recipe
    metrics: list[dict[str, object]] = []
    shown: list[Mapping[str, object]] = []
    with session.progress.bars() as report:
        batches = session.eval_batches()
        if batches:
            metrics += compare_loss(session.tuned, batches, progress=report)
        if questions:
            answers = answer_both(
                session.tuned,
                session.tokenizer,
                questions,
                max_new_tokens=recipe.evaluate.max_new_tokens,
                batch_size=recipe.evaluate.batch_size,
                progress=report,
            )
            scorers = {
                "exact_match": ("exact match", exact_match_scores, "share"),
                "chrf": ("chrF (mean of rows)", chrf_scores, "chrF"),
            }
            for name in recipe.evaluate.metrics:
                label, scorer, unit = scorers[name]
                metrics.append(
                    compare_answers(
                        answers, name, scorer, label=label, group="held-out rows", unit=unit
                    )
                )
            shown = samples(answers, limit=recipe.evaluate.num_samples)
        if recipe.evaluate.english is not None:
            text = read_passages(Path(recipe.evaluate.english))
            metrics.append(compare_text(session.tuned, session.tokenizer, text, progress=report))
    save_evaluation(session, metrics, shown)


def save_evaluation(
    session: Session,
    metrics: Sequence[Mapping[str, object]],
    shown: Sequence[Mapping[str, object]],
) -> None:
    """Write ``eval.json`` and ``samples.jsonl``, and the former into the record."""
    content = evaluation(metrics)
    write_json(session.folder / "eval.json", content)
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in shown)
    write_text(session.folder / "samples.jsonl", lines)
    session.record["evaluation"] = content
