"""Text comes as it is written, and ends where a stop begins, however it is cut into tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ince.serve.sampling import TextStream

WORDS = ["ab", "ba", "aab", "bab", "abc", "bcab"]


def letters_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token, and some words of a few letters are too."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["</s>", "<end>", *letters, *WORDS])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", additional_special_tokens=["<end>"]
    )


LETTERS = letters_tokenizer()
TOKENS = LETTERS.convert_tokens_to_ids(["a", "b", "c", *WORDS])


def until(text: str, stops: list[str]) -> tuple[str, str | None]:
    """By definition: cut at the stop that ends first, of several the longest."""
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        return text, None
    end, _, stop = min(ends)
    return text[: end - len(stop)], stop


@given(
    st.lists(st.sampled_from(TOKENS), max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=5), max_size=4),
)
def test_text_ends_where_a_stop_begins(tokens, stops):
    stream = TextStream(LETTERS, stops)
    shown, whole = "", ""
    for token in tokens:
        whole += LETTERS.decode([token])
        shown += stream.add(token)
        expected, matched = until(whole, stops)
        assert expected.startswith(shown)
        assert stream.matched == matched
        assert stream.stopped == (matched is not None)
        # What cannot become a stop any more is not held back.
        held = expected[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)
    assert shown + stream.finish() == until(whole, stops)[0]


@given(
    st.text("aiğİş日👩 .", max_size=20),
    st.lists(st.text("ğ日👩.", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_stops_and_letters_of_several_tokens(text, stops):
    stream = TextStream(LETTERS, stops)
    pieces = [stream.add(token) for token in LETTERS(text)["input_ids"]]
    assert "".join([*pieces, stream.finish()]) == until(text, stops)[0]
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_without_stops_nothing_is_held_back():
    stream = TextStream(LETTERS)
    assert [stream.add(token) for token in LETTERS("abc")["input_ids"]] == ["a", "b", "c"]
    assert (stream.finish(), stream.stopped) == ("", False)


def test_nothing_comes_after_a_stop():
    stream = TextStream(LETTERS, ["b"])
    a, b, c = LETTERS("abc")["input_ids"]
    assert [stream.add(a), stream.add(b), stream.add(c), stream.finish()] == ["a", "", "", ""]
    assert stream.matched == "b"


def test_a_stop_that_is_a_special_token_is_met_by_it():
    stream = TextStream(LETTERS, ["<end>", "ab"])
    a, _ = LETTERS("ab")["input_ids"]
    assert [stream.add(a), stream.add(LETTERS.convert_tokens_to_ids("<end>"))] == ["", "a"]
    assert stream.matched == "<end>"


def test_a_stop_in_the_last_held_bytes_counts():
    stream = TextStream(LETTERS, ["\N{REPLACEMENT CHARACTER}"])
    first, _ = LETTERS("ğ")["input_ids"]
    assert stream.add(first) == ""
    assert stream.finish() == ""
    assert stream.stopped


@pytest.mark.parametrize("stop", ["a" * 200 + "b", "a" * 3 + "ba" * 100])
def test_of_a_long_stop_only_its_beginning_is_held_back(stop):
    stream = TextStream(LETTERS, [stop])
    (a,) = LETTERS("a")["input_ids"]
    pieces = [stream.add(a) for _ in range(1000)]
    assert len("".join(pieces)) >= 800
    assert "".join(pieces) + stream.finish() == "a" * 1000
