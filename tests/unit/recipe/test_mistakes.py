import pytest

from ince.errors import ConfigError
from ince.recipe import parse_recipe


def problems_of(values, **arguments):
    with pytest.raises(ConfigError) as caught:
        parse_recipe(values, **arguments)
    return {problem.key: problem for problem in caught.value.problems}


def good(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    return {"model": {"base": "b"}, "data": {"train": str(rows)}, "output": "runs/x"}


def test_all_mistakes_of_all_sections_come_together(tmp_path):
    found = problems_of(
        good(tmp_path)
        | {
            "lora": {"r": 0, "dropout": 1.0, "lora_alpha": 3},
            "train": {"lr": -1, "epochs": "many", "optimiser": "adamw"},
            "modle": {},
        }
    )
    assert set(found) == {
        "lora.r",
        "lora.dropout",
        "lora.lora_alpha",
        "train.lr",
        "train.epochs",
        "train.optimiser",
        "modle",
    }
    assert found["lora.r"].what == "got 0, expected at least 1"
    assert found["train.epochs"].what == "got 'many', expected a number"
    assert found["train.optimiser"].suggestion == "did you mean 'optimizer'?"


@pytest.mark.parametrize(
    "section, key, suggestion",
    [
        ("train", "learning_rate", "here it is train.lr"),
        ("lora", "lora_alpha", "here it is lora.alpha"),
        ("model", "load_in_4bit", "here it is model.quantize"),
        ("model", "lr", "it belongs in train.lr"),
        ("data", "max_lenght", "did you mean 'max_length'?"),
        ("lora", "zzz", None),
    ],
)
def test_an_unknown_key_is_sent_to_its_place(tmp_path, section, key, suggestion):
    values = good(tmp_path)
    values[section] = {**values.get(section, {}), key: 1}
    assert problems_of(values)[f"{section}.{key}"].suggestion == suggestion


@pytest.mark.parametrize(
    "override, what",
    [
        ("lora.r=0", "got 0, expected at least 1"),
        ("lora.r=1.5", "got 1.5, expected a whole number"),
        ("lora.dropout=1", "got 1, expected less than 1.0"),
        ("lora.dropout=-0.1", "got -0.1, expected at least 0.0"),
        ("lora.target_modules=[]", "expected"),
        ("lora.init=pisa", "expected 'default', 'gaussian', 'orthogonal', 'pissa' or 'olora'"),
        ("lora.rank_pattern={q_proj: 0}", "got q_proj: 0, expected at least 1"),
        ("train.lr=0", "got 0, expected more than 0.0"),
        ("train.lr=.nan", "expected a finite number"),
        ("train.lr=.inf", "expected a finite number"),
        ("train.lr=true", "got true, expected a number"),
        ("train.epochs=0", "got 0, expected more than 0.0"),
        ("train.epochs=1e999", "expected a finite number"),
        ("train.seed=-1", "got -1, expected at least 0"),
        ("train.schedule=cosin", "got 'cosin', expected 'cosine', 'linear' or 'constant'"),
        ("train.betas=[0.9]", "too few values"),
        ("train.betas=[0.9, 1.0]", "betas"),
        ("train.micro_batch_tokens=100000", "micro_batch_tokens is 100000"),
        ("data.max_length=1", "expected at least"),
        ("data.packing=1", "got 1, expected true or false"),
        ("data.packing=no", "got 'no', expected true or false"),
        ("model.quantize=nf5", "got 'nf5', expected 'nf4'"),
        ("model.blocksize=96", "expected a power of two"),
        ("model.device=gpu", "got 'gpu'"),
        ("model.base=", "got null, expected text"),
        ("evaluate.metrics=[bleu]", "got 'bleu', expected 'exact_match' or 'chrf'"),
        ("evaluate.num_samples=-1", "got -1, expected at least 0"),
        ("output=", "got null, expected text"),
        ("lora=3", "got 3, expected keys with values"),
    ],
)
def test_each_value_has_its_range(tmp_path, override, what):
    found = problems_of(good(tmp_path), overrides=[override])
    assert len(found) == 1
    (problem,) = found.values()
    assert what in str(problem)


def test_a_near_choice_is_suggested(tmp_path):
    found = problems_of(good(tmp_path), overrides=["train.schedule=cosin"])
    assert found["train.schedule"].suggestion == "did you mean 'cosine'?"


def test_a_number_for_a_name_says_quotes(tmp_path):
    found = problems_of(good(tmp_path) | {"output": 2024})
    assert found["output"].suggestion == "put it in quotes if it is a name"


def test_what_fits_alone_and_not_together_is_reported_under_the_recipes_keys(tmp_path):
    found = problems_of(
        good(tmp_path) | {"lora": {"layers_to_transform": [0], "target_modules": "all-linear"}}
    )
    assert "layers_to_transform" in str(found["lora"])
    found = problems_of(good(tmp_path) | {"lora": {"target_modules": "(q_proj"}})
    assert "regular expression" in found["lora.target_modules"].what


def test_an_override_that_is_none_is_reported_with_the_rest(tmp_path):
    found = problems_of(good(tmp_path), overrides=["train.lr", "lora.r=0", "=3", "train..lr=1"])
    assert {"train.lr", "lora.r", "=3", "train..lr=1"} == set(found)


def test_missing_files_are_reported_together_with_near_names(tmp_path):
    values = good(tmp_path)
    values["data"] = {"train": str(tmp_path / "row.jsonl"), "eval": str(tmp_path)}
    found = problems_of(values)
    assert "no such file" in found["data.train"].what
    assert found["data.train"].suggestion == "did you mean 'rows.jsonl'?"
    assert "is a folder" in found["data.eval"].what
