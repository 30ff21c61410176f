import json

import pytest
from rich.console import Console

from ince.data.close_up import CloseUp
from ince.data.example import Example
from ince.data.inspect import inspect_file
from ince.data.token_view import token_view, turn_table
from ince.data.view import render


def drawn(renderable, *, color=False):
    console = Console(
        width=100,
        force_terminal=color,
        color_system="truecolor" if color else None,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


@pytest.fixture
def path(tmp_path):
    rows = [
        {"prompt": "Soru?", "completion": "[red]Çınar[/red]\x1b[2J"},
        {"prompt": "Soru?", "completion": "x" * 40},
        {"prompt": "Soru?", "completion": "\x1b]0;x"},
        {"prompt": "Soru?", "completion": 3},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return path


def test_an_inspection_is_drawn_with_everything_in_it(path, make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    text = drawn(render(inspect_file(path, tokenizer)))
    for part in (
        "prompt-completion",
        "jsonl, utf-8",
        "4, of which 1 cannot be used",
        "line 4: 'completion' is not text (int: 3)",
        "3 examples",
        "█",
        "first example (a.jsonl, line 1)",
    ):
        assert part in text


def test_what_is_learnt_stands_between_marks_without_color(path, make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    shown = inspect_file(path, tokenizer).example
    assert "assistant⏎\n⟦[red]Çınar[/red]\\x1b[2J<|im_end|>■⟧" in drawn(token_view(shown))


def test_tokens_differ_in_shade_and_stops_stand_out(path, make_tokenizer):
    shown = inspect_file(path, make_tokenizer("chatml")).example
    text = drawn(token_view(shown), color=True)
    assert "\x1b[30;48;2;183;235;176m[\x1b[0m\x1b[30;48;2;143;214;138mr\x1b[0m" in text
    assert "\x1b[1;37;48;2;26;127;55m<|im_end|>\x1b[0m\x1b[1;32m■" in text
    assert "\x1b[30;48;2;228;228;228m" in text, "context"


def test_no_text_of_a_file_commands_the_terminal(path, make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    assert "\x1b" not in drawn(render(inspect_file(path, tokenizer)))


def test_a_form_alone_is_drawn_too(path):
    assert "sha256" in drawn(render(inspect_file(path)))


def test_what_was_cut_off_is_said():
    shown = CloseUp(Example((70, 71), (False, True), "a", 5), ("a", "b"), ())
    assert "5 tokens were cut off" in drawn(token_view(shown))


def test_turns_are_a_table(path, make_tokenizer):
    shown = inspect_file(path, make_tokenizer("chatml")).example
    lines = [line.split() for line in drawn(turn_table(shown)).splitlines()]
    assert lines == [
        ["turn", "tokens", "learnt", "stops", "with"],
        ["user", "13", "0", "–"],
        ["assistant", "34", "23", "<|im_end|>", "■"],
    ]
