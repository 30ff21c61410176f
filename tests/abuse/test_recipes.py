"""Recipes that nobody means well with: each ends in one clear error, quickly and small."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ince.errors import ConfigError, InceError
from ince.recipe import load_recipe, parse_recipe
from ince.recipe.yaml_text import parse_yaml

BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(12)
)

HOSTILE = {
    "an anchor bomb": (BOMB, "anchors"),
    "an alias alone": ("a: *b", "anchors"),
    "a merge key": ("x: &x {r: 1}\nlora: {<<: *x}", "anchors"),
    "a tag that builds objects": ("a: !!python/object/apply:os.system ['true']", "YAML"),
    "a made-up tag": ("a: !thing 3", "YAML"),
    "depth": ("a: " + "[" * 5000, "deep"),
    "depth by indentation": ("\n".join("  " * i + "a:" for i in range(300)), "deep"),
    "a key twice": ("lora: {r: 1, r: 2}", "more than once"),
    "a section twice": ("lora: {r: 1}\nlora: {r: 2}", "more than once"),
    "a list": ("- a\n- b", "not a recipe"),
    "a word": ("hello", "not a recipe"),
    "two documents": ("a: 1\n---\nb: 2", "YAML"),
    "a tab": ("lora:\n\tr: 3", "YAML"),
    "an open bracket": ("lora: {r: 3", "YAML"),
    "a list as a key": ("? [a, b]\n: 3", "YAML"),
    "a control character": ("a: \x07", "YAML"),
    "a number without end": ("train: {seed: " + "9" * 6000 + "}", "YAML"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_ends_in_one_clear_error(tmp_path, name):
    text, expected = HOSTILE[name]
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected) as caught:
        load_recipe(path)
    assert len(str(caught.value)) < 2000


def test_a_large_file_is_not_read(tmp_path):
    path = tmp_path / "recipe.yaml"
    with path.open("wb") as stream:
        stream.truncate(1 << 34)
    with pytest.raises(ConfigError, match="too large"):
        load_recipe(path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00a", b"a: \x80", "a: ü".encode("latin-1")])
def test_other_encodings_are_named(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="UTF-8"):
        load_recipe(path)


@pytest.mark.parametrize("text", ["a = ", "a = 1\na = 2", "[lora]\n[lora]", "a = " + "[" * 5000])
def test_hostile_toml_ends_in_one_clear_error(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="TOML"):
        load_recipe(path)


def test_no_file_a_folder_and_another_kind_of_file(tmp_path):
    with pytest.raises(ConfigError, match="no such recipe"):
        load_recipe(tmp_path / "x.yaml")
    with pytest.raises(ConfigError, match="folder"):
        load_recipe(tmp_path)
    (tmp_path / "recipe.txt").write_text("a: 1")
    with pytest.raises(ConfigError, match="name"):
        load_recipe(tmp_path / "recipe.txt")


def test_an_empty_file_names_what_a_recipe_needs(tmp_path):
    (tmp_path / "recipe.yaml").write_text("# nothing yet\n")
    with pytest.raises(ConfigError, match=r"model\.base"):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    "override",
    [
        "a=&x 1",
        "a=*x",
        "lora.r=[",
        "lora.r={a",
        "=",
        "",
        ".",
        "a.b.c.d=1",
        "lora.r=" + "9" * 6000,
        "lora.r=[1]\nb: 2",
        "lora=x",
        "lora.r.x=1",
        "a=!!python/name:os.system",
    ],
)
def test_hostile_overrides_are_mistakes_like_others(override):
    with pytest.raises(ConfigError) as caught:
        parse_recipe({}, overrides=[override])
    assert len(caught.value.problems) >= 3


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_mapping_or_a_config_error(text):
    try:
        values = parse_yaml(text, where="x").values
    except ConfigError:
        return
    assert isinstance(values, dict)


_plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_names = st.sampled_from(
    [
        "model",
        "lora",
        "data",
        "train",
        "evaluate",
        "output",
        "base",
        "r",
        "lr",
        "betas",
        "metrics",
        "target_modules",
        "rank_pattern",
        "layers_to_transform",
        "quantize",
        "eval",
        "x.y",
    ]
)
_values = st.recursive(
    _plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(_names, _values, max_size=6))
def test_any_values_end_in_a_recipe_or_in_problems(values):
    with pytest.raises(InceError) as caught:  # no drawn recipe can name an existing data file
        parse_recipe(values)
    assert isinstance(caught.value, ConfigError)
    assert caught.value.problems
    str(caught.value)
