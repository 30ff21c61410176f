"""Sentences with gold morphology, read from the CoNLL-U files of `turkish-treebanks`.

The package (Apache-2.0) puts its files at the top of site-packages, so they are found
through the distribution's own file list. A word may be split into inflectional groups:
rows joined by ``SpaceAfter=No``, of which only the first has the lemma.
"""

import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ince.errors import DataError

__all__ = ["PACKAGE", "VERSION", "Sentence", "Token", "parse_conllu", "read_treebanks"]

PACKAGE = "turkish-treebanks"
VERSION = "1.0.0"
_PARTS = ("wiki", "web")
_NUM_COLUMNS = 10


@dataclass(frozen=True)
class Token:
    """One row: a word, or an inflectional group of one."""

    form: str
    lemma: str
    upos: str
    xpos: str
    features: dict[str, str]
    space_after: bool


@dataclass(frozen=True)
class Sentence:
    """One sentence with its source part (``wiki`` or ``web``)."""

    identifier: str
    part: str
    text: str
    tokens: tuple[Token, ...]


def _token(line: str, path: Path, number: int) -> Token:
    columns = line.split("\t")
    if len(columns) != _NUM_COLUMNS:
        raise DataError(
            "not a CoNLL-U row",
            where=f"{path.name}:{number}",
            got=f"{len(columns)} columns",
            expected=f"{_NUM_COLUMNS} columns separated by tabs",
        )
    pairs = (pair.partition("=") for pair in columns[5].split("|") if "=" in pair)
    return Token(
        form=columns[1],
        lemma=columns[2],
        upos=columns[3],
        xpos=columns[4],
        features={name: value for name, _, value in pairs},
        space_after="SpaceAfter=No" not in columns[9],
    )


def parse_conllu(path: Path, part: str) -> Iterator[Sentence]:
    """Sentences of one CoNLL-U file, in its order.

    Raises:
        DataError: a row has not ten columns (file and line are named), or not UTF-8.
    """
    identifier, text = "", ""
    tokens: list[Token] = []
    try:
        with path.open(encoding="utf-8") as stream:
            for number, raw in enumerate(stream, start=1):
                line = raw.rstrip("\n")
                if line.startswith("# sent_id = "):
                    identifier = line.removeprefix("# sent_id = ")
                elif line.startswith("# text = "):
                    text = line.removeprefix("# text = ")
                elif line and not line.startswith("#"):
                    tokens.append(_token(line, path, number))
                elif not line and tokens:
                    yield Sentence(identifier, part, text, tuple(tokens))
                    identifier, text, tokens = "", "", []
    except UnicodeDecodeError as error:
        raise DataError("not UTF-8 text", where=path, got=str(error)) from error
    if tokens:
        yield Sentence(identifier, part, text, tuple(tokens))


def read_treebanks() -> list[Sentence]:
    """All sentences of the installed `turkish-treebanks`, each text once.

    Raises:
        DataError: the package is not installed, or lacks a file.
    """
    advice = f"pip install {PACKAGE}=={VERSION}"
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise DataError(
            "the Turkish treebanks are not installed", where=PACKAGE, do=advice
        ) from error
    sentences: list[Sentence] = []
    seen: set[str] = set()
    for part in _PARTS:
        found = [Path(str(f.locate())) for f in files if f.name == f"{part}.conllu"]
        if not found or not found[0].is_file():
            raise DataError(
                "a treebank file is missing", where=f"{PACKAGE}: {part}.conllu", do=advice
            )
        for sentence in parse_conllu(found[0], part):
            if sentence.text and sentence.text not in seen:
                seen.add(sentence.text)
                sentences.append(sentence)
    return sentences
