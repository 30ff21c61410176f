import json

import pytest

SHORT = ("--max-new-tokens", "4", "--num-rows", "3")


def metrics(out: str) -> dict[str, dict[str, object]]:
    return {metric["name"]: metric for metric in json.loads(out)["evaluation"]["metrics"]}


def test_an_adapter_is_compared_with_its_base(
    command, adapter_folder, model_folder, rows, tmp_path
):
    text = tmp_path / "english.txt"
    text.write_text("\n\n".join(f"Paragraph {i} has some words in it." for i in range(200)))
    code, out, _ = command(
        "eval", str(adapter_folder), "--data", str(rows), "--english", str(text), "--json", *SHORT
    )
    assert code == 0
    found = json.loads(out)
    assert found["base"] == str(model_folder)
    assert found["adapter"] == str(adapter_folder)
    assert found["data"]["num_rows"] == 6
    scores = metrics(out)
    assert set(scores) == {
        "heldout_loss",
        "perplexity",
        "exact_match",
        "chrf",
        "english_bits_per_byte",
    }
    loss = scores["heldout_loss"]
    assert loss["base"] != loss["tuned"]
    assert loss["low"] <= loss["difference"] <= loss["high"]
    assert (loss["num_rows"], scores["exact_match"]["num_rows"]) == (6, 3)
    assert scores["chrf"]["echo"] > 0


def test_a_person_gets_a_table(command, adapter_folder, rows):
    code, out, _ = command("eval", str(adapter_folder), "--data", str(rows), *SHORT)
    assert code == 0
    for words in ("held-out loss", "exact match", "chrF", "95% interval"):
        assert words in out


def test_a_model_alone_has_no_other_side(command, model_folder, rows):
    code, out, _ = command("eval", str(model_folder), "--data", str(rows), "--json", *SHORT)
    assert code == 0
    loss = metrics(out)["heldout_loss"]
    assert loss["base"] > 0
    assert loss["tuned"] is None
    assert loss["low"] is None


def test_a_model_against_itself_differs_by_nothing(command, model_folder, rows):
    code, out, _ = command(
        "eval",
        str(model_folder),
        "--base",
        str(model_folder),
        "--data",
        str(rows),
        "--json",
        "--num-rows",
        "0",
    )
    assert code == 0
    scores = metrics(out)
    assert set(scores) == {"heldout_loss", "perplexity"}
    assert scores["heldout_loss"]["difference"] == 0


def test_an_adapter_measures_as_its_side_of_two_models(command, model_folder, adapter_folder, rows):
    arguments = ("--data", str(rows), "--json", "--num-rows", "0")
    paired = metrics(command("eval", str(adapter_folder), *arguments)[1])["heldout_loss"]
    turned = metrics(
        command("eval", str(model_folder), "--base", str(adapter_folder), *arguments)[1]
    )["heldout_loss"]
    assert turned["base"] == pytest.approx(paired["tuned"], rel=1e-6)
    assert turned["tuned"] == pytest.approx(paired["base"], rel=1e-6)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), "no held-out rows are named"),
        (("--data", "nowhere.jsonl"), "no such data file"),
        (("--data", "{rows}", "--english", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_bad_input_is_exit_2(command, model_folder, rows, arguments, words):
    filled = [argument.format(rows=rows) for argument in arguments]
    code, _, err = command("eval", str(model_folder), *filled)
    assert code == 2
    assert words in err
