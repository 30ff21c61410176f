import json

from ince.cli.output import print_error, print_json
from ince.errors import ConfigError, InterruptedRunError, Problem


def test_json_is_one_line_that_any_reader_takes(capsys):
    print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"ğ": (1, None)}, "d": True})
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out) == {"a": None, "b": [None, 1.5], "c": {"ğ": [1, None]}, "d": True}


def test_names_are_never_read_as_markup(capsys):
    error = ConfigError(
        "a [red]name[/red]", where="[link=x]y", problems=[Problem("lora.[b]", "got '[/b]'")]
    )
    print_error(error)
    err = capsys.readouterr().err
    for text in ("[red]name[/red]", "[link=x]y", "lora.[b]: got '[/b]'"):
        assert text in err


def test_an_error_in_a_pipe_keeps_its_lines_and_has_no_colors(capsys):
    error = ConfigError("x " * 100, problems=[Problem("key", "y " * 100)])
    print_error(error)
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert len(err.strip().splitlines()) == 2


def test_a_stop_is_not_called_an_error(capsys):
    print_error(InterruptedRunError("stopped after step 3", do="run it again"))
    err = capsys.readouterr().err
    assert err.startswith("stopped after step 3")
    assert "error" not in err
