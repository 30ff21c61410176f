import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ince.errors import ConfigError
from ince.recipe import Recipe, parse_recipe
from ince.recipe.yaml_text import parse_yaml


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    return path


def least(rows) -> dict[str, object]:
    return {
        "model": {"base": "smollm2-135m-instruct"},
        "data": {"train": str(rows)},
        "output": "runs/x",
    }


def test_only_base_rows_and_output_must_be_given(rows):
    recipe = parse_recipe(least(rows))
    assert recipe.lora.r == 16
    assert recipe.lora.target_modules == "all-linear"
    assert recipe.model.quantize == "nf4"
    assert recipe.train.lr == 2e-4
    assert recipe.output_folder.parts == ("runs", "x")


def test_an_empty_recipe_names_what_is_missing_by_its_key():
    with pytest.raises(ConfigError) as caught:
        parse_recipe({})
    assert [p.key for p in caught.value.problems] == ["model.base", "data.train", "output"]
    assert "smollm2-135m-instruct" in str(caught.value)


def test_an_empty_section_is_one_with_defaults(rows):
    assert parse_recipe(least(rows) | {"lora": None}) == parse_recipe(least(rows))


def test_yaml_of_a_resolved_recipe_reads_back_equal(rows):
    recipe = parse_recipe(least(rows), overrides=["data.system=no", "lora.rank_pattern.q_proj=4"])
    assert recipe.data.system == "no"
    again = parse_recipe(parse_yaml(recipe.to_yaml(), where="again").values)
    assert again == recipe
    assert again.digest() == recipe.digest()


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(
        st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs"), exclude_characters="﻿"),
        min_size=1,
        max_size=20,
    )
    | st.sampled_from(["no", "1e-4", "0x10", "null", "1:30", "010", "~", "2024-01-01", "=", "<<"])
)
def test_any_text_survives_yaml(text):
    recipe = Recipe.model_validate(
        {"model": {"base": text}, "data": {"train": text}, "output": text}
    )
    assert Recipe.model_validate(parse_yaml(recipe.to_yaml(), where="x").values) == recipe


def test_the_digest_is_of_what_decides_the_result(rows, tmp_path):
    recipe = parse_recipe(least(rows))
    assert len(recipe.digest()) == 64
    assert parse_recipe(least(rows), overrides=["output=elsewhere"]).digest() == recipe.digest()
    reported = parse_recipe(least(rows), overrides=["train.report_to=[wandb]"])
    assert reported.digest() == recipe.digest()
    assert parse_recipe(least(rows), overrides=["train.lr=1e-4"]).digest() != recipe.digest()
    # Defaults written out are the same recipe.
    assert parse_recipe(recipe.to_dict()).digest() == recipe.digest()
    # A project that moves keeps its digest; rows of another name change it.
    moved = tmp_path / "moved" / "train.jsonl"
    moved.parent.mkdir()
    moved.write_bytes(rows.read_bytes())
    assert parse_recipe(least(moved)).digest() == recipe.digest()
    renamed = moved.rename(moved.with_name("other.jsonl"))
    assert parse_recipe(least(renamed)).digest() != recipe.digest()


def test_sections_become_the_configs_of_their_rooms(rows):
    recipe = parse_recipe(
        least(rows)
        | {"lora": {"r": 4, "alpha": 12, "dropout": 0.1, "target_modules": ["q_proj"]}}
        | {
            "model": {
                "base": "smollm2-135m-instruct",
                "double_quant": False,
                "blocksize": 128,
                "quantize_head": True,
            }
        }
    )
    lora = recipe.lora.to_lora_config(base_model="x")
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (4, 12, 0.1)
    assert list(lora.target_modules) == ["q_proj"]
    assert lora.base_model_name_or_path == "x"
    quantization = recipe.model.to_nf4_config()
    assert (quantization.blocksize, quantization.double_quant) == (128, False)
    assert (quantization.scale_search, quantization.quantize_head) == (False, True)


@pytest.mark.parametrize("word", ["none", "null", ""])
def test_sixteen_bits_can_be_said_in_words(rows, word):
    recipe = parse_recipe(least(rows), overrides=[f"model.quantize={word}"])
    assert recipe.model.quantize is None
    assert recipe.model.to_nf4_config() is None


def test_a_recipe_is_frozen(rows):
    recipe = parse_recipe(least(rows))
    with pytest.raises(ValueError, match="frozen"):
        recipe.output = "x"


def test_every_field_is_documented():
    def undocumented(model, prefix=""):
        for name, field in model.model_fields.items():
            nested = field.annotation
            if isinstance(nested, type) and hasattr(nested, "model_fields"):
                yield from undocumented(nested, f"{prefix}{name}.")
            elif not prefix.startswith("data.") and not field.description:
                yield prefix + name

    assert list(undocumented(Recipe)) == []


def test_toml_says_the_same(rows):
    text = f"""
    output = "runs/x"
    [model]
    base = "smollm2-135m-instruct"
    [data]
    train = "{rows}"
    """
    assert parse_recipe(tomllib.loads(text)) == parse_recipe(least(rows))
