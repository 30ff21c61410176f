"""The demo's steps, in order: data, base, training, measurement, proof, report.

Nothing here is special to it: the data are built by `ince.data.turkish`, the recipe is
the YAML file beside this module, and the rest is what ``ince train`` does.
"""

import json
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from ince.data import Message
from ince.data.turkish import build_instructions, fold, read_treebanks
from ince.data.turkish.diacritics import PROMPT
from ince.demo.english import heldout_texts, rehearsal_rows
from ince.errors import OutputError
from ince.evaluate import restored_word_accuracy
from ince.recipe import Recipe, parse_recipe
from ince.recipe.claim import claimed
from ince.recipe.measure import (
    Answers,
    Question,
    answer_both,
    chrf_scores,
    compare_answers,
    compare_loss,
    compare_text,
    exact_match_scores,
    samples,
)
from ince.recipe.parity import EXACT_PROOF, ROUNDED_PROOF, prove_merge
from ince.recipe.run import recorded, save_evaluation
from ince.recipe.session import Session, open_run
from ince.recipe.yaml_text import parse_yaml
from ince.record import RunRecord
from ince.report import write_report

__all__ = ["demo_recipe", "run_demo"]

# Rows: what two cores learn in some minutes, and enough to tell a gain from chance.
_FULL = {"num_test": 200, "inflection": 1600, "diacritics": 1600, "english": 40, "texts": 20}
_QUICK = {"num_test": 12, "inflection": 80, "diacritics": 80, "english": 8, "texts": 3}
_NUM_SAMPLES = 20
_NUM_QUICK_STEPS = 5


def demo_recipe(output: Path, *, quick: bool = False) -> Recipe:
    """The demo's recipe, with its data in ``output/data``; `quick` stops after a few steps."""
    file = resources.files("ince.demo") / "recipe.yaml"
    values = parse_yaml(file.read_text(encoding="utf-8"), where="ince.demo/recipe.yaml").values
    data = cast(dict[str, object], values["data"])
    data["train"] = str((output / "data" / "train.jsonl").absolute())
    data["eval"] = str((output / "data" / "eval.jsonl").absolute())
    values["output"] = str(output)
    if quick:
        cast(dict[str, object], values["train"])["max_steps"] = _NUM_QUICK_STEPS
    return parse_recipe(values, where="ince.demo/recipe.yaml")


def _questions(path: Path) -> list[Question]:
    questions: list[Question] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        asked, answer = row["messages"]
        words = asked["content"]
        # What an answer that only repeats would be: the noun, or the fragment as it was typed.
        echo = (
            words.split('"')[1]
            if row["task"] == "inflection"
            else words.removeprefix(PROMPT).strip()
        )
        questions.append(
            Question((Message("user", words),), answer["content"], str(row["task"]), echo)
        )
    return questions


def _word_counts(questions: Sequence[Question], answers: Sequence[str]) -> list[tuple[int, int]]:
    return [
        restored_word_accuracy(fold(question.gold), question.gold, answer)
        for question, answer in zip(questions, answers, strict=True)
    ]


def _word_accuracy(questions: Sequence[Question], answers: Sequence[str]) -> list[float]:
    """Share of the words that lost letters and came back, row by row."""
    return [right / lost for right, lost in _word_counts(questions, answers)]


def _task_metrics(answers: Answers) -> list[dict[str, object]]:
    inflection, diacritics = answers.of_task("inflection"), answers.of_task("diacritics")
    num_lost = [float(lost) for _, lost in _word_counts(diacritics.questions, diacritics.tuned)]
    return [
        compare_answers(
            inflection,
            "inflection_exact_match",
            exact_match_scores,
            label="inflection: exact match",
            group="inflection",
            unit="share",
        ),
        compare_answers(
            diacritics,
            "diacritics_word_accuracy",
            _word_accuracy,
            label="diacritics: words restored",
            group="diacritics",
            unit="share",
            weights=num_lost,
        ),
        compare_answers(
            diacritics,
            "diacritics_chrf",
            chrf_scores,
            label="diacritics: chrF",
            group="diacritics",
            unit="chrF",
        ),
    ]


def _measure(session: Session, questions: Sequence[Question], num_texts: int) -> None:
    recipe = session.recipe
    with session.progress.bars() as report:
        answers = answer_both(
            session.tuned,
            session.tokenizer,
            questions,
            max_new_tokens=recipe.evaluate.max_new_tokens,
            batch_size=recipe.evaluate.batch_size,
            progress=report,
        )
        metrics = _task_metrics(answers)
        metrics += compare_loss(session.tuned, session.eval_batches(), progress=report)
        metrics.append(
            compare_text(
                session.tuned, session.tokenizer, heldout_texts(limit=num_texts), progress=report
            )
        )
    save_evaluation(session, metrics, samples(answers, limit=_NUM_SAMPLES))


def _summary(record: RunRecord, run: Path) -> dict[str, Any]:
    """The object of ``ince demo --json``."""
    metrics: list[Mapping[str, Any]] = record["evaluation"]["metrics"]
    names = (
        "inflection_exact_match",
        "diacritics_word_accuracy",
        "diacritics_chrf",
        "heldout_loss",
        "english_bits_per_byte",
    )
    by_name = {metric["name"]: metric for metric in metrics}

    def values(who: str) -> dict[str, float]:
        found = {name: by_name[name][who] for name in names}
        return {name: value for name, value in found.items() if value is not None}

    proofs = {proof["name"]: proof["value"] for proof in record["proofs"]}
    return {
        "base": values("base"),
        "tuned": values("tuned"),
        "echo": values("echo"),
        "intervals": {name: [by_name[name]["low"], by_name[name]["high"]] for name in names},
        "num_rows": {name: by_name[name]["num_rows"] for name in names},
        "seconds": record["seconds"],
        "peak_bytes": record["peak_bytes"],
        "parity_max_abs_logit_diff": proofs[EXACT_PROOF],
        "parity_16bit_max_abs_logit_diff": proofs[ROUNDED_PROOF],
        "run": str(run),
    }


def _refuse_foreign_data(output: Path) -> None:
    """The demo writes its data before it has a run: never over those of somebody else."""
    data = output / "data"
    if data.is_dir() and any(data.iterdir()) and not (data / "card.json").is_file():
        raise OutputError(
            "the output folder holds data that the demo did not build",
            where=data,
            got=", ".join(sorted(path.name for path in data.iterdir())[:5]),
            do="choose another output folder",
        )


def run_demo(
    *, output: Path, quick: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """Fine-tune the packaged model on Turkish, measure it, prove it, and draw the report.

    Args:
        output: folder of the run. A demo that was cut off goes on; one that is done is shown.
        quick: a small part of the data, to see that everything works; scores mean nothing.
        console: for progress; stderr when None.

    Returns:
        What ``ince demo --json`` prints.

    Raises:
        DataError: the treebanks are not installed.
        OutputError: the folder holds something else.
        ProofError: the merged model does not say what the adapter says.
    """
    console = Console(stderr=True) if console is None else console
    size = _QUICK if quick else _FULL
    started = time.monotonic()
    _refuse_foreign_data(output)
    with claimed(output):
        instructions = build_instructions(
            read_treebanks(),
            output / "data",
            num_test=size["num_test"],
            num_eval=min(40, size["num_test"]),
            num_train_inflection=size["inflection"],
            num_train_diacritics=size["diacritics"],
            rehearsal=rehearsal_rows(size["english"], seed=7),
        )
        recipe = demo_recipe(output, quick=quick)
        record = open_run(recipe, resume=True)
        if record.get("status") != "done":
            console.print(
                f"built {output / 'data'} in {time.monotonic() - started:.0f} s", markup=False
            )
            with recorded(record):
                session = Session(recipe, record, console=console)
                questions = _questions(instructions.path("test"))
                session.train(questions=questions)
                with record.phase("evaluate"):
                    _measure(session, questions, size["texts"])
                with record.phase("merge check"):
                    prove_merge(session)
        write_report(output)
        return _summary(record, output)
