"""The two Turkish tasks as instruction files, split so that nothing leaks.

    train.jsonl   to learn from
    eval.jsonl    watched during training
    test.jsonl    asked once, before and after
    card.json     counts, digests, sources and rules; card.md says the same to a person

A lemma is in one split only, a sentence is in one split only, no test or eval fragment
occurs inside a training sentence, and no training fragment contains an inflected form
that test or eval ask for.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ince.data.turkish.diacritics import DiacriticsRow, build_fragments
from ince.data.turkish.inflection import Inflection, build_inflections
from ince.data.turkish.orthography import lower
from ince.data.turkish.treebank import PACKAGE, VERSION, Sentence
from ince.errors import DataError
from ince.files import sha256_file, write_json, write_text

__all__ = ["InstructionSet", "build_instructions"]

SPLITS = ("train", "eval", "test")
_WORDS = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class InstructionSet:
    """Where the files are, and the card as data."""

    folder: Path
    card: dict[str, object]

    def path(self, split: str) -> Path:
        """The JSONL file of a split."""
        return self.folder / f"{split}.jsonl"


def _row(task: str, question: str, answer: str) -> dict[str, object]:
    return {
        "task": task,
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ],
    }


def _split_inflections(
    rows: Sequence[Inflection], held_out: dict[str, int], chooser: random.Random
) -> dict[str, list[Inflection]]:
    """Whole lemmas go to test, then eval, until each has its number of rows."""
    by_lemma: dict[str, list[Inflection]] = {}
    for row in rows:
        by_lemma.setdefault(row.lemma, []).append(row)
    lemmas = sorted(by_lemma)
    chooser.shuffle(lemmas)
    splits: dict[str, list[Inflection]] = {split: [] for split in SPLITS}
    for lemma in lemmas:
        for split in ("test", "eval"):
            if len(splits[split]) < held_out[split]:
                splits[split] += by_lemma[lemma]
                break
        else:
            splits["train"] += by_lemma[lemma]
    for split in ("test", "eval"):
        splits[split] = splits[split][: held_out[split]]
    return splits


def _split_fragments(
    sentences: Sequence[Sentence],
    held_out: dict[str, int],
    asked_forms: set[str],
    chooser: random.Random,
    seed: int,
) -> tuple[dict[str, list[DiacriticsRow]], Counter[str]]:
    ordered = sorted(sentences, key=lambda sentence: sentence.text)
    chooser.shuffle(ordered)
    # Each sentence yields about three fragments; a third of its own is taken from each.
    pools: dict[str, list[Sentence]] = {}
    start = 0
    for split in ("test", "eval"):
        size = min(2 * held_out[split], len(ordered) // 4)
        pools[split] = ordered[start : start + size]
        start += size
    pools["train"] = ordered[start:]
    trained_text = "\n".join(sentence.text for sentence in pools["train"])
    splits: dict[str, list[DiacriticsRow]] = {}
    dropped: Counter[str] = Counter()
    for split in ("test", "eval"):
        rows = build_fragments(pools[split], seed=seed)
        unseen = [row for row in rows if row.fragment not in trained_text]
        dropped["fragment also in a training sentence"] += len(rows) - len(unseen)
        chooser.shuffle(unseen)
        splits[split] = unseen[: held_out[split]]
    rows = build_fragments(pools["train"], seed=seed)
    splits["train"] = [
        row for row in rows if asked_forms.isdisjoint(_WORDS.findall(lower(row.fragment)))
    ]
    dropped["fragment with a form that test or eval ask for"] += len(rows) - len(splits["train"])
    return splits, dropped


def build_instructions(
    sentences: Sequence[Sentence],
    folder: Path,
    *,
    num_test: int = 250,
    num_eval: int = 60,
    num_train_inflection: int | None = None,
    num_train_diacritics: int | None = None,
    rehearsal: Sequence[dict[str, object]] = (),
    seed: int = 7,
) -> InstructionSet:
    """Write the instruction files and their card into `folder`.

    Args:
        sentences: with gold morphology, such as `read_treebanks` gives.
        folder: made if needed; its files are replaced.
        num_test: rows of each task in test.jsonl.
        num_eval: rows of each task in eval.jsonl.
        num_train_inflection: rows in train.jsonl; all when None. Asking for more than
            there are repeats them, in another order each time.
        num_train_diacritics: the same for diacritics.
        rehearsal: rows of what the model should not forget, mixed into train.jsonl as they are.
        seed: of every choice; equal seeds write equal bytes.

    Raises:
        DataError: there are too few sentences for the splits.
    """
    chooser = random.Random(seed)
    held_out = {"test": num_test, "eval": num_eval}
    all_inflections, dropped = build_inflections(sentences)
    inflections = _split_inflections(all_inflections, held_out, chooser)
    asked = {row.form for split in ("test", "eval") for row in inflections[split]}
    fragments, dropped_fragments = _split_fragments(sentences, held_out, asked, chooser, seed)
    dropped.update(dropped_fragments)
    for task, splits in (("inflection", inflections), ("diacritics", fragments)):
        for split, wanted in (*held_out.items(), ("train", 1)):
            if len(splits[split]) < wanted:
                raise DataError(
                    f"too few sentences for the {split} split of {task}",
                    got=f"{len(splits[split])} rows from {len(sentences)} sentences",
                    expected=f"at least {wanted}",
                )
    wanted = {"inflection": num_train_inflection, "diacritics": num_train_diacritics}
    counts: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        tasks = {
            "inflection": [_row("inflection", r.question, r.form) for r in inflections[split]],
            "diacritics": [_row("diacritics", r.question, r.fragment) for r in fragments[split]],
        }
        if split == "train":
            tasks = {name: _take(rows, wanted[name], chooser) for name, rows in tasks.items()}
            tasks["rehearsal"] = list(rehearsal)
        rows = [row for task_rows in tasks.values() for row in task_rows]
        chooser.shuffle(rows)
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        write_text(Path(folder) / f"{split}.jsonl", "\n".join(lines) + "\n")
        counts[split] = {name: len(task_rows) for name, task_rows in tasks.items()}
    card: dict[str, object] = {
        "name": "Turkish inflection and diacritics",
        "source": {"package": PACKAGE, "version": VERSION, "license": "Apache-2.0"},
        "num_sentences": len(sentences),
        "seed": seed,
        "rows": counts,
        "dropped": dict(sorted(dropped.items())),
        "digests": {split: sha256_file(Path(folder) / f"{split}.jsonl") for split in SPLITS},
    }
    write_json(Path(folder) / "card.json", card)
    write_text(Path(folder) / "card.md", _card_text(card, counts, dropped))
    return InstructionSet(Path(folder), card)


def _take(
    rows: list[dict[str, object]], wanted: int | None, chooser: random.Random
) -> list[dict[str, object]]:
    if wanted is None:
        return rows
    taken: list[dict[str, object]] = []
    while len(taken) < wanted:
        again = list(rows)
        chooser.shuffle(again)
        taken += again[: wanted - len(taken)]
    return taken


def _card_text(
    card: dict[str, object], counts: dict[str, dict[str, int]], dropped: Counter[str]
) -> str:
    table = "\n".join(
        f"| {split} | {counts[split]['inflection']:,} | {counts[split]['diacritics']:,} |"
        for split in SPLITS
    )
    rehearsed = counts["train"]["rehearsal"]
    rehearsal = (
        f"\n**rehearsal**: {rehearsed:,} further rows of train.jsonl are of neither task; they\n"
        "are there so that less is forgotten.\n"
        if rehearsed
        else ""
    )
    reasons = "\n".join(f"- {reason}: {number:,}" for reason, number in sorted(dropped.items()))
    return f"""# {card["name"]}

Built from {card["num_sentences"]:,} sentences with gold morphology of `{PACKAGE}` {VERSION}
(Apache-2.0), seed {card["seed"]}. Language: Turkish.

| split | inflection | diacritics |
|---|---|---|
{table}

**inflection**: `"kitap" sözcüğünün çoğul bulunma (-de) hâli nedir?` → `kitaplarda`.
Attested forms of common nouns, one form a cell, bare singular left out.

**diacritics**: `{PROMPT_EXAMPLE}`. Three to five consecutive words that lost a letter.
{rehearsal}
## What keeps the splits apart
A lemma is in one split only; a sentence is in one split only; no test or eval fragment
occurs inside a training sentence; no training fragment contains an inflected form that
test or eval ask for. Frequent words do occur in all splits, as they do in the language.

## Dropped
{reasons}

## Known limits
Gold analyses carry a little noise. Both tasks are narrow: a score here is not a score in
Turkish at large.
"""


PROMPT_EXAMPLE = "Turkce harfleri duzelt: goc eden bu` → `göç eden bu"
