"""Bits per byte: every token once, in windows or whole."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ince.errors import DataError, InputError
from ince.evaluate import bits_per_byte
from ince.evaluate.text import _windows

TEXT = "İnce ince yağan kar, the quick brown fox; " * 6


@pytest.fixture
def model(tiny_llama):
    return tiny_llama(seed=3, initializer_range=0.2)


def plain_bits(model, tokenizer, text: str) -> float:
    """All tokens in one window, after the start token."""
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return -sum(float(scores[t - 1, ids[t]]) for t in range(1, len(ids))) / math.log(2)


def test_one_window(model, small_tokenizer) -> None:
    result = bits_per_byte(model, small_tokenizer, TEXT, window=512)
    num_bytes = len(TEXT.encode())
    assert result.num_bytes == num_bytes > len(TEXT)
    expected = plain_bits(model, small_tokenizer, TEXT) / num_bytes
    assert result.bits_per_byte == pytest.approx(expected, rel=1e-5)
    assert result.per_text == pytest.approx((result.bits_per_byte,))


def test_texts_are_read_on_their_own_and_weigh_by_their_bytes(model, small_tokenizer) -> None:
    texts = [TEXT, "short", "of medium length, more or less"]
    together = bits_per_byte(model, small_tokenizer, texts, window=512, batch_size=2)
    alone = [plain_bits(model, small_tokenizer, text) for text in texts]
    assert together.bits == pytest.approx(alone, rel=1e-5)
    assert together.bits_per_byte == pytest.approx(sum(alone) / sum(together.sizes), rel=1e-5)


def test_windows_score_every_token_once(model, small_tokenizer) -> None:
    whole = bits_per_byte(model, small_tokenizer, TEXT, window=512)
    cut = bits_per_byte(model, small_tokenizer, TEXT, window=32, stride=8, batch_size=3)
    assert cut.num_tokens == whole.num_tokens
    assert cut.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=0.2)
    assert cut.bits_per_byte != whole.bits_per_byte


@given(num_tokens=st.integers(0, 200), window=st.integers(2, 40), data=st.data())
def test_windows_of_any_size(num_tokens: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window - 1))
    scored: list[int] = []
    for part in _windows(0, list(range(num_tokens)), window, stride):
        assert len(part.tokens) <= window
        new = part.tokens[part.num_context :]
        assert part.num_context >= (1 if new[0] < window else window - stride)
        scored += new
    assert scored == list(range(1, num_tokens))


def test_bits_do_not_depend_on_the_batch(model, small_tokenizer) -> None:
    runs = [
        bits_per_byte(model, small_tokenizer, [TEXT, "x"], window=32, batch_size=size)
        for size in (1, 7)
    ]
    assert runs[0].bits == pytest.approx(runs[1].bits, rel=1e-6)


def test_tokenizer_without_a_start_token(
    model, small_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_start = bits_per_byte(model, small_tokenizer, "a b c d")
    end = small_tokenizer.eos_token
    monkeypatch.setitem(small_tokenizer._special_tokens_map, "bos_token", None)
    with_end = bits_per_byte(model, small_tokenizer, "a b c d")
    monkeypatch.setitem(small_tokenizer._special_tokens_map, "eos_token", None)
    neither = bits_per_byte(model, small_tokenizer, "a b c d")
    assert end
    assert with_start.num_tokens == with_end.num_tokens == neither.num_tokens + 1


def test_model_is_left_as_it_was(model, small_tokenizer) -> None:
    model.train()
    bits_per_byte(model, small_tokenizer, "some words")
    assert model.training


@pytest.mark.parametrize("texts", [[], "", ["something", ""]])
def test_no_text(model, small_tokenizer, texts) -> None:
    with pytest.raises(DataError, match="no text"):
        bits_per_byte(model, small_tokenizer, texts)


@pytest.mark.parametrize(
    "wrong", [{"window": 1}, {"window": 8, "stride": 8}, {"stride": 0}, {"window": 100_000}]
)
def test_windows_that_do_not_fit(model, small_tokenizer, wrong) -> None:
    with pytest.raises(InputError, match="do not fit"):
        bits_per_byte(model, small_tokenizer, TEXT, **({"window": 64} | wrong))


def test_progress(model, small_tokenizer) -> None:
    told: list[tuple[int, int]] = []
    bits_per_byte(
        model, small_tokenizer, TEXT, window=32, batch_size=2, progress=lambda *s: told.append(s)
    )
    assert told[-1][0] == told[-1][1] > 2
