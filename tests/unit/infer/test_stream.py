"""Pieces of text are whole characters, and together they are the text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ince.infer.stream import PieceDecoder


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token of its own: the hardest case for pieces."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["</s>", *letters])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")


BYTES = bytes_tokenizer()


def pieces_of(tokenizer: PreTrainedTokenizerFast, tokens: list[int]) -> list[str]:
    decoder = PieceDecoder(tokenizer)
    return [*(decoder.add(token) for token in tokens), decoder.finish()]


@given(
    st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\N{REPLACEMENT CHARACTER}")
    )
)
def test_pieces_of_any_text(text: str) -> None:
    tokens = BYTES(text)["input_ids"]
    pieces = pieces_of(BYTES, tokens)
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@given(st.lists(st.integers(0, len(BYTES) - 1), max_size=40))
def test_pieces_of_any_bytes(tokens: list[int]) -> None:
    whole = BYTES.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert "".join(pieces_of(BYTES, tokens)) == whole


@pytest.mark.parametrize(
    "text", ["Şişli'de çay, İĞDIR", "👩‍👩‍👧 and 🇹🇷", "  two  spaces\n\n", "日本語の文", ""]
)
def test_pieces_of_a_real_tokenizer(smollm2_tokenizer, text: str) -> None:
    tokens = smollm2_tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = pieces_of(smollm2_tokenizer, tokens)
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_a_letter_of_several_tokens_is_held_back() -> None:
    first, second = BYTES("ğ")["input_ids"]
    decoder = PieceDecoder(BYTES)
    assert [decoder.add(first), decoder.add(second), decoder.finish()] == ["", "ğ", ""]


def test_bytes_that_never_become_a_letter_are_shown_at_the_end() -> None:
    first, _ = BYTES("ğ")["input_ids"]
    decoder = PieceDecoder(BYTES)
    assert decoder.add(first) == ""
    assert decoder.finish() == "\N{REPLACEMENT CHARACTER}"


def test_a_stream_of_broken_letters_costs_no_more_for_each_than_one() -> None:
    decoded: list[int] = []

    class Counting:
        def decode(self, tokens: list[int], **options) -> str:
            decoded.append(len(tokens))
            return str(BYTES.decode(tokens, **options))

    first, last = BYTES("ğ")["input_ids"]
    decoder = PieceDecoder(Counting())  # type: ignore[arg-type]
    pieces = [decoder.add(token) for token in [first] * 200 + [last]]
    assert "".join([*pieces, decoder.finish()]) == BYTES.decode([first] * 200 + [last])
    assert max(decoded) < 40


@given(st.lists(st.sampled_from(BYTES("ğ日👩x")["input_ids"]), max_size=60))
def test_pieces_of_broken_letters(tokens: list[int]) -> None:
    whole = BYTES.decode(tokens, clean_up_tokenization_spaces=False)
    assert "".join(pieces_of(BYTES, tokens)) == whole
