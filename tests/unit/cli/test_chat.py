import io
import json
import sys

import pytest

from ince import infer


@pytest.fixture
def piped(monkeypatch):
    def put(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))

    return put


@pytest.fixture
def person(monkeypatch):
    """Lines typed on a terminal; an exception among them is raised in their place."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def put(*lines) -> None:
        typed = iter(lines)

        def read(_prompt: str = "") -> str:
            line = next(typed, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr(sys, "stdin", Terminal())
        monkeypatch.setattr("builtins.input", read)

    return put


SHORT = ("--max-new-tokens", "4")


def test_one_question_one_answer(command, model_folder):
    code, out, err = command("chat", str(model_folder), "--prompt", "Hi", *SHORT)
    assert code == 0
    assert out.strip()
    assert err == ""
    assert command("chat", str(model_folder), "--prompt", "Hi", *SHORT)[1] == out


def test_json_has_the_turns(command, model_folder):
    code, out, _ = command("chat", str(model_folder), "--prompt", "Hi", "--json", *SHORT)
    found = json.loads(out)
    assert code == 0
    assert found["model"] == str(model_folder)
    assert found["adapter"] is None
    assert [turn["user"] for turn in found["turns"]] == ["Hi"]


def test_lines_of_a_pipe_are_turns_of_one_conversation(command, model_folder, piped):
    piped("Hi\n\n/reset\nAgain\n/quit\nnever\n")
    code, out, err = command("chat", str(model_folder), "--json", *SHORT)
    assert code == 0
    turns = json.loads(out)["turns"]
    assert [turn["user"] for turn in turns] == ["Hi", "Again"]
    assert "forgotten" in err


def test_what_was_said_is_remembered(command, model_folder, piped, monkeypatch):
    seen = []

    def stream(model, tokenizer, conversation, **settings):
        seen.append([(turn.role, turn.content) for turn in conversation])
        yield "yes"

    monkeypatch.setattr(infer, "stream", stream)
    piped("one\ntwo\n/system Be brief\nthree\n")
    code, out, _ = command("chat", str(model_folder), "--system", "Be kind")
    assert code == 0
    assert out == "yes\nyes\nyes\n"
    kind, brief = ("system", "Be kind"), ("system", "Be brief")
    assert seen == [
        [kind, ("user", "one")],
        [kind, ("user", "one"), ("assistant", "yes"), ("user", "two")],
        [brief, ("user", "three")],
    ]


def test_the_adapter_speaks_and_can_be_switched_off(command, model_folder, adapter_folder, piped):
    model = command("chat", str(model_folder), "--prompt", "Hi", *SHORT)[1]
    adapter = command("chat", str(adapter_folder), "--prompt", "Hi", *SHORT)[1]
    base = command("chat", str(adapter_folder), "--prompt", "Hi", "--base", *SHORT)[1]
    assert base == model
    assert adapter != model
    piped("Hi\n/base\n/reset\nHi\n")
    assert command("chat", str(adapter_folder), *SHORT)[1] == adapter + model


def test_a_person_is_prompted_and_leaves_with_the_end_of_input(command, model_folder, person):
    person("/help", "/rest", "Hi")
    code, out, err = command("chat", str(model_folder), *SHORT)
    assert code == 0
    assert len(out.strip().splitlines()) >= 1
    assert "/system TEXT" in err
    assert "did you mean '/reset'?" in err


def test_ctrl_c_cuts_an_answer_short_and_the_talk_goes_on(
    command, model_folder, person, monkeypatch
):
    answers = iter([True, False])

    def stream(model, tokenizer, conversation, **settings):
        yield "part"
        if next(answers):
            raise KeyboardInterrupt
        yield "ner"

    monkeypatch.setattr(infer, "stream", stream)
    person("one", "two")
    code, out, _ = command("chat", str(model_folder))
    assert code == 0
    assert out == "part\npartner\n"


def test_ctrl_c_at_the_prompt_leaves_with_130(command, model_folder, person):
    person(KeyboardInterrupt())
    assert command("chat", str(model_folder))[0] == 130


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--prompt", " "), "empty"),
        (("--top-p", "0"), "range"),
        (("--max-new-tokens", "0"), "range"),
        (("--base-model", "x", "--prompt", "Hi"), "adapter"),
    ],
)
def test_bad_options_are_exit_2(command, model_folder, arguments, words):
    code, _, err = command("chat", str(model_folder), *arguments)
    assert code == 2
    assert words in err


def test_json_with_a_person_is_refused(command, model_folder, person):
    person()
    code, out, _ = command("chat", str(model_folder), "--json")
    assert code == 2
    assert "--prompt" in json.loads(out)["error"]["do"]
