import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ince.data.close_up import close_up, packed_close_up, token_texts
from ince.data.conversation import Completion, Conversation, Document, Message
from ince.data.packing import pack_rows
from ince.data.template import Encoder
from ince.data.truncation import fit

TALK = Conversation(
    tuple(
        Message(r, c)
        for r, c in [("user", "a"), ("assistant", "bc"), ("user", "d"), ("assistant", "ef")]
    ),
    "here",
)


@given(text=st.text("ab İş👩\u200d🚀\n e\u0301", max_size=20))
def test_the_texts_of_tokens_make_the_text(make_tokenizer, text):
    tokenizer = make_tokenizer("chatml", (("a", "b"), ("Ġ", "a")))
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    texts = token_texts(ids, tokenizer)
    assert len(texts) == len(ids)
    assert "".join(texts) == text


def test_bytes_that_are_no_letter_are_shown_all_the_same(make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    broken = tuple(tokenizer("ş", add_special_tokens=False)["input_ids"])[:1] * 6
    assert "".join(token_texts(broken, tokenizer)).count("\ufffd") >= 1


@pytest.mark.parametrize(
    ("max_length", "expected"),
    [
        (200, [("user", 0, None), ("assistant", 3, "<|im_end|>")] * 2),
        (
            45,
            [
                ("user", 0, None),
                ("assistant", 3, "<|im_end|>"),
                ("user", 0, None),
                ("assistant", 1, None),
            ],
        ),
    ],
)
def test_turns_are_told_apart(make_tokenizer, max_length, expected):
    encoder = Encoder(make_tokenizer("chatml"))
    [example] = fit(TALK, encoder, max_length=max_length).examples
    shown = close_up(example, TALK, encoder, "assistant")
    assert [(t.role, t.num_learnt, t.stop_text) for t in shown.turns] == expected
    assert [t.is_cut for t in shown.turns][-1] == (max_length == 45)
    assert [t.first for t in shown.turns[1:]] == [t.last for t in shown.turns[:-1]]
    json.dumps(shown.to_dict())


def test_what_the_template_adds_is_a_turn_of_its_own(smollm2_tokenizer):
    encoder = Encoder(smollm2_tokenizer)
    [example] = fit(TALK, encoder, max_length=200).examples
    shown = close_up(example, TALK, encoder, "assistant")
    assert [turn.role for turn in shown.turns] == ["template", *[m.role for m in TALK.messages]]
    assert "SmolLM" in "".join(shown.tokens[: shown.turns[0].last])


def test_what_has_no_turns_has_parts(make_tokenizer):
    encoder = Encoder(make_tokenizer(None))
    for item, roles in (
        (Completion("ab", "c", "here"), ["prompt", "completion"]),
        (Document("ab", "here"), ["text"]),
    ):
        [example] = fit(item, encoder, max_length=200).examples
        shown = close_up(example, item, encoder, "assistant")
        assert [turn.role for turn in shown.turns] == roles
        assert shown.turns[-1].stop_text == "<|im_end|>"


def test_a_packed_row_is_what_the_model_is_given(make_tokenizer):
    encoder = Encoder(make_tokenizer("chatml"))
    pairs = [(Message("user", "soru " + c), Message("assistant", c)) for c in "abc"]
    talks = [Conversation(pair, name) for name, pair in zip("xyz", pairs, strict=True)]
    examples = [fit(talk, encoder, max_length=200).examples[0] for talk in talks]
    [row] = pack_rows(examples, range(3), 200)
    shown = packed_close_up(row, encoder, pad_id=0, number=1, num_rows=1, max_length=200)
    shared, *own = shown.parts
    assert shared.sources == ("x", "y", "z")
    assert "".join(shared.tokens) == "<|im_start|>user\nsoru "
    for part, example in zip(own, examples, strict=True):
        assert part.first_position == len(shared.tokens)
        assert sum(part.learnt) == example.num_targets
        assert part.tokens[part.stops[0]] == "<|im_end|>"
    json.dumps(shown.to_dict())
