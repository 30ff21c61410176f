"""How well a model predicts a text, in bits for each byte of it.

Perplexity depends on the tokenizer; bits per byte do not, so they compare models with
different vocabularies. The text is read in windows that overlap: each token is scored
once, and all but those of the first window with at least ``window - stride`` tokens before it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ince.errors import DataError, InputError
from ince.evaluate.loss import target_losses
from ince.infer import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TextLoss", "bits_per_byte", "read_passages"]

_PASSAGE_BYTES = 2000

_WINDOW_TOKENS = 1024


@dataclass(frozen=True)
class TextLoss:
    """Bits that a model needs for some texts.

    Attributes:
        bits_per_byte: over all texts; long ones weigh more.
        num_bytes: of all texts in UTF-8.
        num_tokens: that were scored.
        bits: for each text, what it takes.
        sizes: for each text, its bytes.
    """

    bits_per_byte: float
    num_bytes: int
    num_tokens: int
    bits: tuple[float, ...] = field(repr=False)
    sizes: tuple[int, ...] = field(repr=False)

    @property
    def per_text(self) -> tuple[float, ...]:
        """Bits per byte of each text; `sizes` are their weights in `bits_per_byte`."""
        return tuple(b / s for b, s in zip(self.bits, self.sizes, strict=True))


@dataclass(frozen=True)
class _Window:
    text: int
    tokens: list[int]
    num_context: int  # the first of them are read and not scored


def read_passages(path: Path) -> list[str]:
    """A text file in passages of some 2,000 bytes, cut between paragraphs.

    They are the units that an interval draws from.

    Raises:
        DataError: the file cannot be read as UTF-8, or holds no text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError("the text is not UTF-8", where=path, got=str(error)) from error
    except OSError as error:
        raise DataError(f"cannot read the text: {error.strerror}", where=path) from error
    passages: list[str] = []
    for paragraph in text.split("\n\n"):
        if passages and len(passages[-1].encode()) < _PASSAGE_BYTES:
            passages[-1] += "\n\n" + paragraph
        else:
            passages.append(paragraph)
    kept = [passage for passage in passages if passage.strip()]
    if not kept:
        raise DataError("there is no text in this file", where=path)
    return kept


def bits_per_byte(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: str | Sequence[str],
    *,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> TextLoss:
    """Score every token of each text once.

    A text begins after the tokenizer's start token, or its end token where it has no
    other, so that its first token is predicted too.

    Args:
        model: a causal language model; left as it was.
        tokenizer: its own.
        texts: one text or several; each is read on its own.
        window: tokens that the model reads at once; 1,024, or its context where that is shorter,
            when None.
        stride: tokens that each further window scores; half a window when None.
        batch_size: windows in one forward pass.
        progress: told ``(windows done, windows in all)``.

    Raises:
        InputError: window and stride do not fit each other or the model.
        DataError: there is no text.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if window is None:
        window = min(_WINDOW_TOKENS, context or _WINDOW_TOKENS)
    step = window // 2 if stride is None else stride
    if not 0 < step < window or (context and window > context):
        raise InputError(
            "window and stride do not fit",
            got=f"window={window}, stride={step}",
            expected=f"0 < stride < window{f' <= {context}' if context else ''}",
        )
    given = [texts] if isinstance(texts, str) else list(texts)
    sizes = tuple(len(text.encode()) for text in given)
    if not given or not all(sizes):
        raise DataError("there is no text to score", got=f"{sizes.count(0)} empty texts")
    start = tokenizer.bos_token_id
    if start is None:
        start = tokenizer.eos_token_id
    windows: list[_Window] = []
    for number, text in enumerate(given):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        tokens = [start, *ids] if isinstance(start, int) else list(ids)
        windows += _windows(number, tokens, window, step)
    # Of like length together: padding is work for nothing.
    windows.sort(key=lambda w: (-len(w.tokens), w.text))
    nats = [0.0] * len(given)
    num_tokens = 0
    with evaluating(model, expand=True):
        for first in range(0, len(windows), batch_size):
            batch = windows[first : first + batch_size]
            for text, loss in _score(model, batch):
                nats[text] += loss
            num_tokens += sum(len(w.tokens) - w.num_context for w in batch)
            if progress is not None:
                progress(min(first + batch_size, len(windows)), len(windows))
    bits = tuple(value / math.log(2) for value in nats)
    return TextLoss(
        bits_per_byte=math.fsum(bits) / sum(sizes),
        num_bytes=sum(sizes),
        num_tokens=num_tokens,
        bits=bits,
        sizes=sizes,
    )


def _windows(text: int, tokens: list[int], window: int, stride: int) -> list[_Window]:
    """Cut `tokens` so that every one but the first is scored exactly once."""
    found: list[_Window] = []
    scored = 1  # nothing predicts the first
    while scored < len(tokens):
        end = min(len(tokens), window if scored == 1 else scored + stride)
        begin = max(0, end - window)
        found.append(_Window(text, tokens[begin:end], scored - begin))
        scored = end
    return found


def _score(model: "PreTrainedModel", batch: list[_Window]) -> list[tuple[int, float]]:
    """(text, nats) of each window."""
    length = max(len(w.tokens) for w in batch)
    input_ids = torch.zeros(len(batch), length, dtype=torch.int64)
    labels = torch.full_like(input_ids, -100)
    mask = torch.zeros_like(input_ids)
    for b, w in enumerate(batch):  # padded on the right: causal attention never sees it
        n = len(w.tokens)
        input_ids[b, :n] = torch.tensor(w.tokens)
        labels[b, w.num_context : n] = input_ids[b, w.num_context : n]
        mask[b, :n] = 1
    device = next(model.parameters()).device
    losses_N, index_N2 = target_losses(
        model, input_ids.to(device), labels.to(device), attention_mask=mask.to(device)
    )
    sums = losses_N.new_zeros(len(batch)).index_add_(0, index_N2[:, 0], losses_N)
    return [(w.text, value) for w, value in zip(batch, sums.tolist(), strict=True)]
