"""``ince plan``: tables, JSON, pictures and recipes of a plan, and one clear line for a mistake."""

import json
from pathlib import Path

import pytest

from ince.cli.app import main
from ince.recipe import load_recipe


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INCE_CACHE", str(tmp_path / "cache"))


def planned(capsys, *arguments):
    assert main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_model_by_name_on_a_named_device(capsys):
    found = planned(capsys, "llama-3-8b", "--device", "4090", "--tokens", "10M", "--price", "0.5")
    assert found["num_parameters"] == 8_030_261_248
    assert set(found["methods"]) == {"full", "lora", "qlora"}
    assert found["methods"]["full"]["fits"] is False
    solution = found["solution"]
    assert solution["peak_bytes"] <= 24 * 2**30
    assert solution["time"]["cost"] == pytest.approx(solution["time"]["seconds"] / 7200)
    assert solution["time"]["rate_is_assumed"] is True
    million = solution["time"]["cost_per_million_tokens"]
    assert million * 10 == pytest.approx(solution["time"]["cost"])
    kept = found["methods"]["qlora"]["by_activations"]
    assert kept["keep"]["peak_bytes"] > kept["recompute"]["peak_bytes"]
    assert kept["recompute"]["peak_bytes"] > kept["offload"]["peak_bytes"]


def test_the_table_and_the_picture(capsys, tmp_path):
    picture = tmp_path / "plan.png"
    arguments = ["plan", "llama-3-70b", "--memory", "48GiB", "--rank", "64"]
    assert main([*arguments, "--plot", str(picture)]) == 0
    shown = capsys.readouterr().out
    for text in ("Llama-3-70B", "QLoRA", "weights, 4-bit codes", "31.9 GiB", "to fit", "backward"):
        assert text in shown
    for text in ("activations recompute", "activations offload", "no device was named"):
        assert text in shown
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def rows(tmp_path):
    """A file of rows, of which a plan reads none."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n')
    return str(path)


def test_what_fits_is_saved_as_a_recipe_that_runs(capsys, tmp_path, rows):
    path = tmp_path / "fits.yaml"
    wish = ["llama-3-8b", "--memory", "12GiB", "--rows", "8", "--data", rows]
    found = planned(capsys, *wish, "--write", str(path))
    recipe = load_recipe(path)
    setup = found["solution"]["setup"]
    assert recipe.model.base == "meta-llama/Meta-Llama-3-8B"
    assert recipe.train.activations == setup["activations"]
    assert recipe.train.micro_batch_tokens == setup["num_rows"] * setup["length"]
    assert recipe.lora.r == setup["r"]
    again = planned(capsys, str(path), "--device", "4090", "--memory", "12GiB")
    assert again["solution"]["measures"] == []


@pytest.mark.usefixtures("rows")
def test_a_recipe_is_planned_for_this_machine(capsys, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: {base: smollm2-135m-instruct, device: cpu, compute_dtype: float32}\n"
        "data: {train: rows.jsonl, max_length: 512}\noutput: runs/x\n"
    )
    found = planned(capsys, str(path), "lora.r=8", "--tokens", "1M")
    assert found["setup"]["value_bits"] == 32
    assert found["setup"]["r"] == 8
    time = found["methods"]["qlora"]["time"]
    assert "measured on this device" in time["rate"]
    assert time["seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lama-3-8b"], "did you mean 'Llama-3-8B'"),
        (["llama-3-8b", "--memory", "48GiX"], "unknown unit"),
        (["llama-3-8b", "--memory", "-1GiB"], "not an amount"),
        (["llama-3-8b", "--memory", "0"], "no memory"),
        (["llama-3-8b", "--price", "-3"], "price"),
        (["llama-3-8b", "--price", "nan"], "price"),
        (["llama-3-8b", "--tokens", "many"], "not a count"),
        (["llama-3-8b", "--tokens", "0"], "at least one token"),
        (["llama-3-8b", "--rank", "0"], "at least 1"),
        (["llama-3-8b", "--rank", "5000"], "a rank of at most 4,096"),
        (["llama-3-8b", "--plot", "no/plan.png"], "no such folder"),
        (["llama-3-8b", "--device", "h1000"], "did you mean 'H100'"),
        (["llama-3-70b", "--memory", "8GiB"], "too much"),
        (["llama-3-8b", "lora.r=8"], "of a recipe only"),
        (["llama-3-8b", "--plot", "plan.pdf"], ".png"),
        (["llama-3-8b", "--memory", "24GiB", "--write", "x.yaml"], "names its data"),
        (["llama-3-8b", "--data", "no.jsonl", "--write", "x.yaml"], "no such file"),
        (["absent.yaml"], "no such recipe"),
    ],
)
def test_a_mistake_is_one_clear_error(capsys, arguments, said):
    assert main(["plan", *arguments]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown
    assert not Path("x.yaml").exists()
