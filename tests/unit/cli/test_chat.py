import io
import json
import re
import shutil
import signal
import sys
import threading
import time

import pytest

from ince.errors import InceError, InputError
from ince.serve import speak


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


class FakeSpeaker:
    """Says what it is told to, and remembers what it was asked."""

    def __init__(self, *pieces):
        self.pieces = pieces
        self.seen = []
        self.loaded = []
        self.num_closed = 0

    def load(self, adapter):
        self.loaded.append(adapter)

    def answer(self, conversation, adapter, options):
        self.seen.append([(turn.role, turn.content) for turn in conversation])
        for piece in self.pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def close(self):
        self.num_closed += 1


@pytest.fixture
def speaking(monkeypatch):
    """A fake in the place of the model's speaker."""

    def put(*pieces):
        fake = FakeSpeaker(*pieces)
        monkeypatch.setattr(speak, "open_speaker", lambda *_, **__: fake)
        return fake

    return put


@pytest.fixture(autouse=True)
def _no_engine_is_left():
    yield
    assert not [each for each in threading.enumerate() if each.name == "ince-engine"]


def test_what_was_said_is_remembered(command, model_folder, piped, speaking):
    fake = speaking("yes")
    piped("one\ntwo\n/system Be brief\nthree\n")
    code, out, _ = command("chat", str(model_folder), "--system", "Be kind")
    assert code == 0
    assert out == "yes\nyes\nyes\n"
    kind, brief = ("system", "Be kind"), ("system", "Be brief")
    assert fake.seen == [
        [kind, ("user", "one")],
        [kind, ("user", "one"), ("assistant", "yes"), ("user", "two")],
        [brief, ("user", "three")],
    ]
    assert fake.num_closed == 1


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


def test_ctrl_c_cuts_an_answer_short_and_the_talk_goes_on(command, model_folder, person, speaking):
    fake = speaking("part", KeyboardInterrupt())
    person("one", "two")
    code, out, _ = command("chat", str(model_folder))
    assert code == 0
    assert out == "part\npart\n"
    assert fake.seen[1][:2] == [("user", "one"), ("assistant", "part")]


@pytest.mark.parametrize(
    ("error", "words", "num_remembered"),
    [
        (InputError("the prompt fills the model's whole context"), "/reset begins again", 1),
        (InceError("the model's logits are not numbers"), "not numbers", 3),
    ],
)
def test_an_answer_that_fails_ends_no_talk(
    command, model_folder, person, speaking, error, words, num_remembered
):
    fake = speaking("yes")
    answer = fake.answer

    def failing(conversation, *rest):
        if conversation[-1].content == "two":
            raise error
        yield from answer(conversation, *rest)

    fake.answer = failing
    person("one", "two", "three")
    code, _, err = command("chat", str(model_folder))
    assert code == 0
    assert words in err
    assert len(fake.seen[-1]) == num_remembered


def test_a_signal_ends_the_answer_in_the_engine(command, model_folder, person, monkeypatch):
    engines, seen = [], []
    opened = speak.open_speaker

    def watched(*given, **settings):
        speaker = opened(*given, **settings)
        engines.append(speaker.engine)
        answer, step = speaker.answer, speaker.engine._runner.step

        def slow_step():
            time.sleep(0.02)  # so that the signal comes before the last token
            step()

        speaker.engine._runner.step = slow_step

        def interrupted(*request):
            for piece in answer(*request):
                yield piece
                if len(engines) == 1:
                    engines.append(None)
                    signal.raise_signal(signal.SIGINT)

        speaker.answer = interrupted
        return speaker

    def read(_prompt=""):
        until = time.monotonic() + 10
        while (stats := engines[0].stats()).running and time.monotonic() < until:
            time.sleep(0.01)  # it is told of an end before it is rid of it
        seen.append(stats)
        if len(seen) == 1:
            return "Tell me"
        raise EOFError

    monkeypatch.setattr(speak, "open_speaker", watched)
    person()
    monkeypatch.setattr("builtins.input", read)
    assert command("chat", str(model_folder), "--max-new-tokens", "400")[0] == 0
    assert seen[1].running == seen[1].waiting == 0
    assert 0 < seen[1].generated_tokens < 400


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


def test_adapters_change_while_talking(command, model_folder, adapter_folder, piped, tmp_path):
    adapters = tmp_path / "adapters"
    shutil.copytree(adapter_folder, adapters / "tiny")
    arguments = ("--adapters", str(adapters), "--json", *SHORT)
    lines = ("Hi", "/reset", "/adapter tiny", "Hi", "/reset", "/adapter base", "Hi", "/base")
    piped("\n".join([*lines, "/reset", "Hi", "/adapter"]))
    code, out, err = command("chat", str(model_folder), *arguments)
    assert code == 0
    found = json.loads(out)
    assert found["adapter"] is None
    assert [turn["adapter"] for turn in found["turns"]] == [None, "tiny", None, "tiny"]
    said = [turn["assistant"] for turn in found["turns"]]
    assert said[:2] == said[2:]
    assert said[0] != said[1]
    # As each says it alone.
    alone = command("chat", str(adapter_folder), "--prompt", "Hi", *SHORT)[1]
    assert alone.strip() == said[1]
    assert f"› tiny  {adapters / 'tiny'}" in err


def test_a_person_sees_who_answers_and_a_bad_adapter_ends_nothing(
    command, model_folder, adapter_folder, person, tmp_path
):
    adapters = tmp_path / "adapters"
    for name in ("tiny", "torn"):
        shutil.copytree(adapter_folder, adapters / name)
    weights = adapters / "torn" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    person(
        "Hi", "/adapter toto", "/adapter tin", "/adapter tiny", "/adapter torn", "Hi", "/adapter"
    )
    code, _, err = command("chat", str(model_folder), "--adapters", str(adapters), *SHORT)
    assert code == 0
    assert re.findall(r"(\w+) › ", err) == ["base"] * 4 + ["tiny"] * 4
    assert "did you mean 'tiny'?" in err
    assert "adapter_model.safetensors" in err
    assert "tiny goes on" in err


def test_a_bad_switch_in_a_pipe_is_an_error(command, model_folder, adapter_folder, piped):
    piped("/adapter tinny\nHi\n")
    code, out, _ = command(
        "chat", str(model_folder), "--adapter", str(adapter_folder), "--json", *SHORT
    )
    assert code == 2
    assert json.loads(out)["error"]["do"] == "did you mean 'tiny'?"


def test_an_adapter_that_the_engine_refuses_answers_as_before(
    command, model_folder, adapter_folder, tmp_path
):
    from ince.lora import LoraConfig, get_peft_model
    from ince.models import load_model

    base, tokenizer = load_model(model_folder)
    config = LoraConfig(
        r=2,
        target_modules=["q_proj"],
        modules_to_save=["lm_head"],
        base_model_name_or_path=str(model_folder),
    )
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            parameter.data += 0.3
    model.save_pretrained(tmp_path / "whole")
    model.eval()
    from ince.infer import stream

    class Turn:
        role, content = "user", "Hi"

    expected = "".join(stream(model.get_base_model(), tokenizer, [Turn()], max_new_tokens=4))
    code, out, err = command("chat", str(tmp_path / "whole"), "--prompt", "Hi", *SHORT)
    assert code == 0
    assert out.strip() == expected.strip()
    assert len(err.strip().splitlines()) == 1
    assert "not the engine" in err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--adapter", "nowhere"), "nowhere"),
        (("--adapter", "base={}"), "name"),
        (("--adapter", "a={}", "--adapter", "a=nowhere"), "nowhere"),
        (("--adapters", "nowhere"), "no such folder"),
        (("--registry", "nowhere"), "registry"),
        (("--temperature", "nan", "--prompt", "Hi"), "temperature"),
    ],
)
def test_bad_adapters_are_exit_2(command, model_folder, adapter_folder, piped, arguments, words):
    piped("")
    given = [each.format(adapter_folder) for each in arguments]
    code, _, err = command("chat", str(model_folder), *given)
    assert code == 2
    assert words in err
