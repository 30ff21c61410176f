"""The error tree: what a message holds, how it is shown, and the exit codes."""

import inspect
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ince import errors
from ince.errors import (
    AdapterError,
    ConfigError,
    CorruptFileError,
    DataError,
    InceError,
    InputError,
    InterruptedRunError,
    Problem,
    ProofError,
    did_you_mean,
)

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, InceError)
]


def test_message_holds_what_where_got_expected_do():
    error = DataError(
        "rows of the wrong form",
        where="train.jsonl:3",
        got={"a": 1},
        expected="messages",
        do="see the documentation",
    )
    assert str(error).splitlines() == [
        "rows of the wrong form",
        "  where:    train.jsonl:3",
        "  got:      {'a': 1}",
        "  expected: messages",
        "  do:       see the documentation",
    ]


def test_parts_that_are_not_known_are_left_out():
    assert str(InceError("it broke")) == "it broke"
    assert InceError("it broke").details() == []


def test_an_empty_or_false_value_is_still_a_value():
    assert InceError("no", got="").details() == [("got", "''")]
    assert InceError("no", got=0).details() == [("got", "0")]


def test_long_values_are_cut_and_their_length_is_said():
    error = InceError("too long", got="x" * 10_000)
    assert error.got is not None
    assert len(error.got) < 250
    assert error.got.endswith("(10000 characters)")


def test_a_value_takes_one_line():
    assert InceError("no", got="a\n  b\tc").got == "a b c"


@given(st.text(st.characters()))
def test_any_text_can_be_printed_and_moves_no_cursor(text):
    error = ConfigError(text, got=text, where=text, problems=[Problem(text, text, text)])
    shown = str(error)
    shown.encode()
    assert all(character == "\n" or character.isprintable() for character in shown)
    json.dumps(error.to_dict()).encode()


def test_escape_sequences_of_a_terminal_are_shown_not_obeyed():
    assert InceError("no", got="\x1b[2J").got == "\\x1b[2J"


def test_json_form_has_the_type_and_the_exit_code():
    assert ProofError("logits differ", got=0.5, expected="0.1").to_dict() == {
        "type": "ProofError",
        "what": "logits differ",
        "got": "0.5",
        "expected": "0.1",
        "exit_code": 3,
    }


def test_config_error_lists_all_problems():
    error = ConfigError(
        "2 mistakes",
        where="recipe.yaml",
        problems=[
            Problem("train.lr", "not a number"),
            Problem("lora.rank", "unknown key", "did you mean 'r'?"),
        ],
    )
    assert str(error).splitlines()[-2:] == [
        "  - train.lr: not a number",
        "  - lora.rank: unknown key (did you mean 'r'?)",
    ]
    assert error.to_dict()["problems"] == [
        {"key": "train.lr", "what": "not a number", "suggestion": None},
        {"key": "lora.rank", "what": "unknown key", "suggestion": "did you mean 'r'?"},
    ]


def test_a_problem_of_the_whole_has_no_key():
    assert str(Problem("", "both given")) == "both given"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InceError, 1),
        (InputError, 2),
        (AdapterError, 2),
        (ConfigError, 2),
        (CorruptFileError, 1),
        (ProofError, 3),
        (InterruptedRunError, 130),
    ],
)
def test_exit_codes(error, code):
    assert error("x").exit_code == code


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_is_public_drawn_in_the_tree_and_documented(kind):
    assert kind.__name__ in errors.__all__
    assert kind.__name__ in (errors.__doc__ or "")
    assert kind.__doc__


@pytest.mark.parametrize("kind", CLASSES)
def test_errors_cross_processes(kind):
    error = pickle.loads(pickle.dumps(kind("x", where="here", do="this")))  # noqa: S301
    assert type(error) is kind
    assert str(error) == str(kind("x", where="here", do="this"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lerning_rate", "did you mean 'learning_rate'?"),
        ("LEARNING_RATE", "did you mean 'learning_rate'?"),
        ("R", "did you mean 'r'?"),
        ("zebra", None),
        ("", None),
    ],
)
def test_did_you_mean(name, expected):
    assert did_you_mean(name, ["learning_rate", "r"]) == expected


def test_did_you_mean_keeps_the_spelling_of_what_is_known():
    assert did_you_mean("gib", ["GiB", "MiB"]) == "did you mean 'GiB'?"
