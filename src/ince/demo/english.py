"""English that is on every machine that runs the demo: to rehearse, and to see what was lost.

Teaching a small model a second language costs it some of its first. A few rows of English
among the training data hold most of it in place. They come from Python's own language
reference; what is measured is read from numpy's documentation, which is never trained on.
Neither text is part of this repository.
"""

import inspect
import random
import re

__all__ = ["heldout_texts", "rehearsal_rows"]

# Of one text: many texts say more about English than a few long ones.
_MAX_CHARACTERS = 1600
_PROSE = re.compile(r"[A-Z][^:\n]{20,}[.]")

# Long docstrings of much-used functions: their prose, without signatures and examples.
_NUMPY_NAMES = (
    "average",
    "clip",
    "convolve",
    "corrcoef",
    "cov",
    "diff",
    "dot",
    "einsum",
    "gradient",
    "histogram",
    "interp",
    "linspace",
    "matmul",
    "median",
    "meshgrid",
    "pad",
    "percentile",
    "piecewise",
    "polyfit",
    "quantile",
    "reshape",
    "searchsorted",
    "sort",
    "tensordot",
    "trapezoid",
    "unique",
    "unwrap",
    "where",
)


def heldout_texts(*, limit: int) -> list[str]:
    """The documentation of numpy functions, one text each, examples left out."""
    import numpy as np

    texts: list[str] = []
    for name in _NUMPY_NAMES:
        text = inspect.getdoc(getattr(np, name, None)) or ""
        text = text.partition("\nExamples\n")[0].strip()
        if len(text) > 200:
            texts.append(text[:_MAX_CHARACTERS])
    return texts[:limit]


def _paragraphs() -> list[str]:
    from pydoc_data.topics import topics

    found: list[str] = []
    for name in sorted(topics):
        for paragraph in str(topics[name]).split("\n\n"):
            text = " ".join(paragraph.split())
            # Prose only: no grammar rules, no code, no tables.
            if 250 <= len(text) <= 600 and "::=" not in text and _PROSE.match(text):
                found.append(text)
    return found


def rehearsal_rows(number: int, *, seed: int) -> list[dict[str, object]]:
    """Paragraphs of English prose to be continued: the first sentence asked, the rest learnt."""
    paragraphs = _paragraphs()
    random.Random(seed).shuffle(paragraphs)
    rows: list[dict[str, object]] = []
    for paragraph in paragraphs:
        first, stop, rest = paragraph.partition(". ")
        if len(rest) < 100 or len(first) > 250:
            continue
        rows.append(
            {
                "task": "english",
                "messages": [
                    {"role": "user", "content": f"Continue this text: {first}{stop.strip()}"},
                    {"role": "assistant", "content": rest},
                ],
            }
        )
        if len(rows) == number:
            break
    return rows
