import json

import pytest


def test_inspect_says_what_it_saw(command, rows):
    code, out, _ = command("data", "inspect", str(rows), "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["shape"], found["num_rows"], found["tokens"]) == ("messages", 6, None)
    code, out, _ = command("data", "inspect", str(rows))
    assert code == 0
    assert "messages" in out


def test_with_a_model_tokens_are_counted(command, rows, model_folder):
    code, out, _ = command("data", "inspect", str(rows), "--model", str(model_folder), "--json")
    assert code == 0
    assert json.loads(out)["tokens"]["num_examples"] == 6


def test_a_row_is_shown_in_tokens(command, rows, model_folder):
    arguments = ("data", "inspect", str(rows), "--model", str(model_folder), "--row", "3")
    code, out, _ = command(*arguments)
    assert code == 0
    assert "⟦It is 3.<|im_end|>■⟧" in out
    assert "stops with" in out
    [found] = json.loads(command(*arguments, "--json")[1])["row"]["examples"]
    assert found["turns"][-1]["stop_text"] == "<|im_end|>"
    learnt = [t for t, is_learnt in zip(found["tokens"], found["learnt"], strict=True) if is_learnt]
    assert "".join(learnt) == "It is 3.<|im_end|>"
    assert len(found["input_ids"]) == len(found["tokens"])


def test_a_packed_row_is_shown_as_the_model_sees_it(command, rows, model_folder):
    arguments = ("data", "inspect", str(rows), "--model", str(model_folder), "--packed", "1")
    code, out, _ = command(*arguments)
    assert code == 0
    assert "packed row 1 of 1" in out
    assert "shared by 6 examples" in out
    found = json.loads(command(*arguments, "--json")[1])["packed"]
    assert sum(part["last"] - part["first"] for part in found["parts"]) == found["num_tokens"]
    assert sum(len(part["stops"]) for part in found["parts"]) == 6
    for part in found["parts"]:
        assert not (any(part["learnt"]) and len(part["sources"]) > 1)


def test_options_are_those_of_a_recipe(command, rows, model_folder):
    arguments = ("data", "inspect", str(rows), "--model", str(model_folder), "--row", "3")
    code, out, _ = command(*arguments, "--system", "Kısa yaz.", "--truncation", "left")
    assert code == 0
    assert "Kısa yaz." in out
    code, out, _ = command(*arguments[:-2], "--truncation", "drop", "--max-length", "20", "--json")
    assert json.loads(out)["dropped"] == {"longer than max_length": 6}


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("nowhere.jsonl",), "no such data file"),
        (("{rows}", "--row", "3"), "needs a model"),
        (("{rows}", "--model", "{model}", "--row", "99"), "line 99"),
        (("{rows}", "--model", "./nowhere"), "no such model"),
        (("{rows}", "--row", "0"), "range"),
        (("{rows}", "--model", "{model}", "--packed", "99"), "no packed row 99"),
        (("{rows}", "--model", "{model}", "--packed", "1", "--row", "1"), "different things"),
    ],
)
def test_bad_input_is_exit_2(command, rows, model_folder, arguments, words):
    filled = [a.format(rows=rows, model=model_folder) for a in arguments]
    code, _, err = command("data", "inspect", *filled)
    assert code == 2
    assert words in err


def test_a_bad_row_says_why(command, rows, model_folder):
    with rows.open("a") as stream:
        stream.write('{"messages": [{"role": "user", "content": "alone"}]}\n')
    code, _, err = command("data", "inspect", str(rows), "--model", str(model_folder), "--row", "7")
    assert code == 2
    assert "assistant" in err
