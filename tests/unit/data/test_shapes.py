import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ince.data.conversation import Completion, Conversation, Document
from ince.data.rows import FileRow
from ince.data.shapes import SHAPES, clean_text, convert_row, detect_shape, shape_of
from ince.errors import DataError

U, A, S = "user", "assistant", "system"
ASKED = [(U, "Soru?"), (A, "Cevap.")]
GOOD = {
    "messages": (
        {"messages": [{"role": U, "content": "Soru?"}, {"role": A, "content": "Cevap."}]},
        ASKED,
    ),
    "messages in text parts": (
        {
            "messages": [
                {"role": U, "content": [{"type": "text", "text": "So"}, {"text": "ru?"}]},
                {"role": A, "content": "Cevap.", "tool_calls": None, "weight": 1},
            ]
        },
        ASKED,
    ),
    "messages in a cell": (
        {"messages": '[{"role":"user","content":"Soru?"},{"role":"assistant","content":"Cevap."}]'},
        ASKED,
    ),
    "messages under conversations": (
        {"conversations": [{"role": U, "content": "Soru?"}, {"role": A, "content": "Cevap."}]},
        ASKED,
    ),
    "an empty system message": (
        {
            "messages": [
                {"role": S, "content": ""},
                {"role": U, "content": "Soru?"},
                {"role": A, "content": "Cevap."},
            ]
        },
        ASKED,
    ),
    "sharegpt": (
        {
            "conversations": [
                {"from": "system", "value": "Kısa yaz."},
                {"from": "human", "value": "Soru?"},
                {"from": "gpt", "value": "Cevap."},
            ]
        },
        [(S, "Kısa yaz."), *ASKED],
    ),
    "sharegpt with a system column": (
        {
            "system": "Kısa yaz.",
            "conversations": [
                {"from": "human", "value": "Soru?"},
                {"from": "gpt", "value": "Cevap."},
            ],
        },
        [(S, "Kısa yaz."), *ASKED],
    ),
    "alpaca": ({"instruction": "Soru?", "input": "", "output": "Cevap."}, ASKED),
    "alpaca with input": (
        {"instruction": "Çevir.", "input": "cat", "output": "kedi", "text": "Below is …"},
        [(U, "Çevir.\n\ncat"), (A, "kedi")],
    ),
    "alpaca in Turkish": (
        {"talimat": "Çevir.", "giriş": "cat", "çıktı": "kedi"},
        [(U, "Çevir.\n\ncat"), (A, "kedi")],
    ),
    "dolly": ({"instruction": "Soru?", "context": None, "response": "Cevap."}, ASKED),
    "prompt-completion": ({"prompt": "Soru?", "completion": "Cevap."}, ASKED),
    "question and answer": ({"Question": "Soru?", " answer ": "Cevap.", "id": 3}, ASKED),
    "soru and cevap": ({"soru": "Soru?", "cevap": "Cevap."}, ASKED),
    "prompt-completion of messages": (
        {
            "prompt": [{"role": U, "content": "Soru?"}],
            "completion": [{"role": A, "content": "Cevap."}],
        },
        ASKED,
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_row_becomes_a_conversation(name):
    value, expected = GOOD[name]
    row = FileRow(4, value)
    item = convert_row(row, detect_shape([row]), "d.jsonl, line 4")
    assert isinstance(item, Conversation)
    assert [(m.role, m.content) for m in item.messages] == expected
    assert item.source == "d.jsonl, line 4"


def test_text_becomes_a_document():
    row = FileRow(1, {"text": "Bir varmış.\r\nBir yokmuş.", "url": "x"})
    assert detect_shape([row]) == "text"
    assert convert_row(row, "text", "here") == Document("Bir varmış.\nBir yokmuş.", "here")


@pytest.mark.parametrize("shape", SHAPES[:-1])
def test_every_shape_is_its_own(shape):
    value = {"text": {"text": "x"}}.get(shape) or GOOD[shape][0]
    assert shape_of(value) == shape


def test_a_pair_is_a_completion_where_it_is_asked_for():
    row = FileRow(1, {"prompt": "Soru: ", "completion": "cevap"})
    assert SHAPES[-1] == "plain-completion"
    assert detect_shape([row]) == "prompt-completion", "plain ones are never found"
    assert convert_row(row, SHAPES[-1], "here") == Completion("Soru: ", "cevap", "here")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"prompt": " ", "completion": "b"}, "empty prompt"),
        ({"question": "a", "answer": ""}, "empty answer"),
        ({"prompt": [], "completion": []}, "'prompt' is not text"),
        ({"text": "a"}, "no prompt and completion"),
    ],
)
def test_a_pair_that_is_no_completion_says_why(value, reason):
    with pytest.raises(DataError, match=reason):
        convert_row(FileRow(1, value), "plain-completion", "here")


@pytest.mark.parametrize(
    ("value", "num_prompt"),
    [
        ({"prompt": "a", "completion": "b"}, 1),
        ({"prompt": "a", "completion": "b", "system": "s"}, 2),
        (
            {
                "prompt": [
                    {"role": "system", "content": " "},
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                    {"role": "user", "content": "c"},
                ],
                "completion": [{"role": "assistant", "content": "d"}],
            },
            3,
        ),
    ],
)
def test_what_belongs_to_the_prompt_is_known(value, num_prompt):
    item = convert_row(FileRow(1, value), "prompt-completion", "here")
    assert item.num_prompt == num_prompt
    assert [m.role for m in item.messages[num_prompt:]] == ["assistant"]


def test_the_shape_of_most_rows_wins():
    rows = [FileRow(1, {"text": "x"}), *[FileRow(i, GOOD["alpaca"][0]) for i in (2, 3)]]
    assert detect_shape(rows) == "alpaca"


def turns(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


@pytest.mark.parametrize(
    ("shape", "value", "reason"),
    [
        ("messages", {"messages": []}, "no assistant turn"),
        ("messages", {"messages": "not a list"}, "no list of messages"),
        ("messages", {"messages": "[broken"}, "no list of messages"),
        ("messages", {"messages": ["Soru?"]}, "a message is not an object"),
        ("messages", turns((U, "Soru?")), "no assistant turn"),
        ("messages", turns((A, "Merhaba!"), (U, "Soru?"), (A, "x")), "has no user turn before it"),
        ("messages", turns((U, "Soru?"), (A, "x"), (S, "y")), "not the first message"),
        ("messages", turns((U, "Soru?"), (A, " \n")), "empty assistant text"),
        ("messages", turns((U, " "), (A, "x")), "empty user text"),
        ("messages", turns(("asistant", "x")), "unknown role"),
        ("messages", turns((3, "x")), "unknown role"),
        ("messages", turns((U, 3), (A, "x")), "not text"),
        ("messages", {"messages": [{"role": U}]}, "without 'content'"),
        (
            "messages",
            {"messages": [{"role": U, "content": [{"type": "image_url"}]}]},
            "a part that is not text",
        ),
        (
            "messages",
            {"messages": [{"role": A, "content": "x", "tool_calls": [{"id": 1}]}]},
            "'tool_calls' is not supported",
        ),
        (
            "messages",
            {"messages": [{"role": A, "content": "x", "weight": 0}]},
            "'weight' is not supported",
        ),
        ("messages", {**GOOD["messages"][0], "tools": [{}]}, "'tools' is not supported"),
        (
            "sharegpt",
            {**GOOD["sharegpt"][0], "system": "Uzun yaz."},
            "a system message and a column",
        ),
        ("sharegpt", {"conversations": [{"from": "bot", "value": "x"}]}, "unknown role"),
        ("alpaca", {"instruction": "Soru?", "input": "x"}, "no instruction and output"),
        ("alpaca", {"instruction": "Soru?", "output": 42}, "'output' is not text"),
        ("alpaca", {"instruction": "Soru?", "output": ""}, "empty assistant text"),
        ("prompt-completion", {"prompt": "Soru?", "completion": None}, "no prompt and completion"),
        ("text", {"text": " "}, "empty text"),
        ("text", {"body": "x"}, "no text"),
        ("text", {"text": "a\ud83d"}, "half a surrogate pair"),
    ],
)
def test_a_row_of_the_wrong_form_says_why(shape, value, reason):
    with pytest.raises(DataError, match=reason):
        convert_row(FileRow(1, value), shape, "here")


def test_a_mistyped_role_gets_a_suggestion():
    with pytest.raises(DataError, match="did you mean 'assistant'"):
        convert_row(FileRow(1, turns((U, "a"), ("asistant", "x"))), "messages", "here")


def test_unknown_columns_get_suggestions():
    with pytest.raises(DataError, match="did you mean 'completion'"):
        detect_shape([FileRow(1, {"promt": "a", "completon": "b"})])


def test_preferences_are_not_taken_for_instructions():
    with pytest.raises(DataError, match="chosen and rejected"):
        detect_shape([FileRow(1, {"chosen": "a", "rejected": "b"})])


@given(text=st.text())
def test_clean_text_is_nfc_and_changes_nothing_else(text):
    cleaned = clean_text(text)
    assert cleaned == unicodedata.normalize("NFC", text.replace("\r\n", "\n"))
    assert unicodedata.is_normalized("NFC", cleaned)


def test_turkish_letters_come_through_whole():
    decomposed = unicodedata.normalize("NFD", "ğüşöçİı âîû")
    assert clean_text(decomposed) == "ğüşöçİı âîû"
