import pytest

from ince.data.conversation import Conversation, Message
from ince.data.turns import ChatTemplate
from ince.errors import TemplateError

TALK = Conversation(
    (
        Message("user", "a"),
        Message("assistant", " bir "),
        Message("user", "b"),
        Message("assistant", "iki"),
    ),
    "here",
)


def found(template, *, only_last=False):
    text, turns = template.find_turns(TALK, from_message=3 if only_last else 0)
    return [text[turn.start : turn.content_end] for turn in turns]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chatml", [" bir ", "iki"]),
        ("trims", ["bir", "iki"]),
        ("mistral", ["  bir ", " iki"]),
        ("drops_reasoning", [" bir ", "<think>\n\n</think>\n\niki"]),
        ("marks", [" bir ", "iki"]),
    ],
)
def test_turns_are_where_the_model_writes(make_tokenizer, name, expected):
    template = ChatTemplate(make_tokenizer(name))
    assert [part.strip() for part in found(template)] == [part.strip() for part in expected]
    assert found(template, only_last=True) == expected[-1:]


def test_marks_are_seen(make_tokenizer):
    assert ChatTemplate(make_tokenizer("marks")).has_marks
    assert not ChatTemplate(make_tokenizer("chatml")).has_marks


def test_words_that_occur_in_the_template_are_found_all_the_same(make_tokenizer):
    template = ChatTemplate(make_tokenizer("drops_reasoning"))
    talk = Conversation((Message("user", "a"), Message("assistant", "k")), "here")
    text, [turn] = template.find_turns(talk, from_message=0)
    assert text[turn.start : turn.content_end] == "<think>\n\n</think>\n\nk"


def test_rendering_fails_in_one_way(make_tokenizer):
    with pytest.raises(TemplateError, match="cannot render") as caught:
        ChatTemplate(make_tokenizer("broken")).render(TALK.messages)
    assert "no attribute 'nothing'" in str(caught.value)


def test_the_generation_prompt_is_asked_for(make_tokenizer):
    template = ChatTemplate(make_tokenizer("chatml"))
    plain = template.render(TALK.messages[:1])
    prompt = template.render(TALK.messages[:1], generation_prompt=True)
    assert prompt == plain + "<|im_start|>assistant\n"
