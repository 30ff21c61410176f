import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ince.errors import ConfigError, Problem
from ince.recipe import parse_recipe
from ince.search.grid import (
    MAX_CANDIDATES,
    MAX_WITHOUT_YES,
    Axis,
    build_candidates,
    choose_values,
    parse_axes,
)


@pytest.fixture
def read(tmp_path):
    """What makes a recipe of overrides."""
    for name in ("train.jsonl", "eval.jsonl"):
        (tmp_path / name).write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    values = {
        "model": {"base": "smollm2-135m-instruct"},
        "data": {"train": str(tmp_path / "train.jsonl"), "eval": str(tmp_path / "eval.jsonl")},
        "output": "runs/x",
    }
    return lambda overrides: parse_recipe(values, overrides=overrides)


def build(arguments, read, folder, **options):
    axes, fixed = parse_axes(arguments)
    points = choose_values(axes, **options)
    return build_candidates(
        axes, points, lambda more: read([*fixed, *more]), folder=folder, where="recipe.yaml"
    )


def test_the_grid_in_order_each_with_its_name_and_folder(read, tmp_path):
    found = build(["lora.r=8,16", "train.lr=1e-4, 2e-4", "train.seed=3"], read, tmp_path)
    assert [each.name for each in found] == [
        "r=8,lr=1e-4",
        "r=8,lr=2e-4",
        "r=16,lr=1e-4",
        "r=16,lr=2e-4",
    ]
    assert [(c.recipe.lora.r, c.recipe.train.lr) for c in found] == [
        (8, 1e-4),
        (8, 2e-4),
        (16, 1e-4),
        (16, 2e-4),
    ]
    assert {c.recipe.train.seed for c in found} == {3}
    assert found[2].recipe.output_folder == tmp_path / "r=16,lr=1e-4"
    assert found[2].values == {"lora.r": "16", "train.lr": "1e-4"}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,2", ("1", "2")),
        ("[q_proj,v_proj],all-linear", ("[q_proj,v_proj]", "all-linear")),
        ('"a,b", c', ('"a,b"', "c")),
        (r'"a\",b",c', (r'"a\",b"', "c")),
        ("'it''s, so',c", ("'it''s, so'", "c")),
        ("[[1,2],{a: '],'}],x", ("[[1,2],{a: '],'}]", "x")),
        ("a:b=c,d", ("a:b=c", "d")),
        ("null,3", ("null", "3")),
    ],
)
def test_values_are_cut_at_commas_outside_of_brackets_and_quotes(text, values):
    assert parse_axes([f"k.x={text}"]) == ([Axis("k.x", values)], [])


def test_lists_are_values(read, tmp_path):
    found = build(["lora.target_modules=[q_proj,v_proj],all-linear"], read, tmp_path)
    assert [c.recipe.lora.target_modules for c in found] == [("q_proj", "v_proj"), "all-linear"]
    assert [c.name for c in found] == [
        "target_modules=q_proj+v_proj",
        "target_modules=all-linear",
    ]


@given(st.lists(st.text(max_size=12), min_size=1, max_size=4))
def test_any_arguments_are_read_or_refused(arguments):
    try:
        axes, fixed = parse_axes(arguments)
    except ConfigError:
        return
    assert len(axes) + len(fixed) == len(arguments)
    assert all(len(axis.texts) > 1 for axis in axes)


def test_all_that_cannot_be_read_is_said_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_axes(
            [
                "lora.r",
                ".r=1,2",
                "lora.alpha=8,,16",
                "lora.alpha=3,4",
                "lora.target_modules=[a,b",
                "lora.init='x,y",
                "lora.bias=[a}],none",
                "output=a,b",
                "data.eval=a,b",
                "evaluate.num_samples=1,2",
            ]
        )
    said = str(caught.value)
    assert len(caught.value.problems) == 10
    for words in (
        "not values for a key",
        "an empty value",
        "given twice",
        "a bracket that does not close",
        "a quote that does not close",
        "'}' where ']' was expected",
        "a folder of its own",
        "the same held-out rows",
        "not how a candidate trains",
    ):
        assert words in said


def test_an_unknown_key_is_said_once_and_a_wrong_value_with_its_candidate(read, tmp_path):
    with pytest.raises(ConfigError) as caught:
        build(["lora.rr=8,16", "train.lr=1e-4,fast,2e-4"], read, tmp_path)
    assert caught.value.exit_code == 2
    unknown, wrong = sorted(caught.value.problems, key=lambda problem: problem.key)
    assert unknown == Problem("lora.rr", "unknown key", "did you mean 'r'?")
    assert wrong.key == "train.lr"
    assert "'fast'" in wrong.what
    assert "[in rr=8,lr=fast and 1 more]" in wrong.what


def test_a_single_candidate_is_no_sweep():
    for arguments in ([], ["train.lr=1e-4"]):
        with pytest.raises(ConfigError, match="this is one"):
            choose_values(parse_axes(arguments)[0])
    with pytest.raises(ConfigError, match="this is one"):
        choose_values([Axis("a", ("1", "2"))], sample=1)


@pytest.mark.parametrize("values", ["8,8", "8, 0x8", "8,16,8"])
def test_candidates_that_are_one_and_the_same_are_refused(read, tmp_path, values):
    with pytest.raises(ConfigError, match="one and the same") as caught:
        build([f"lora.r={values}"], read, tmp_path)
    assert "r=8" in str(caught.value)


def test_files_of_one_name_in_two_folders_are_two_candidates(read, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "train.jsonl").write_text('{"prompt": "a", "completion": "c"}\n')
    one, two = tmp_path / "train.jsonl", tmp_path / "b" / "train.jsonl"
    found = build([f"data.train={one},{two}"], read, tmp_path)
    assert len({c.recipe.output for c in found}) == 2
    assert all("/" not in c.name for c in found)


def test_too_many_are_refused_unless_they_are_meant():
    axes = [Axis("a", tuple(map(str, range(201))))]
    with pytest.raises(ConfigError, match="201 candidates") as caught:
        choose_values(axes)
    assert "--yes" in str(caught.value)
    assert len(choose_values(axes, yes=True)) == 201
    assert len(choose_values(axes, sample=MAX_WITHOUT_YES)) == MAX_WITHOUT_YES
    vast = [Axis(name, tuple(map(str, range(1000)))) for name in "abcdefg"]
    with pytest.raises(ConfigError, match=f"{MAX_CANDIDATES:,}"):
        choose_values(vast, yes=True)
    assert len(choose_values(vast, sample=3)) == 3


def test_a_random_part_is_drawn_once_and_alike():
    axes = [Axis("a", tuple("12345")), Axis("b", tuple("678"))]
    whole = choose_values(axes)
    assert whole == [{"a": a, "b": b} for a, b in itertools.product("12345", "678")]
    part = choose_values(axes, sample=6, seed=4)
    assert part == choose_values(axes, sample=6, seed=4)
    assert part != choose_values(axes, sample=6, seed=5)
    assert len(part) == 6
    assert [point for point in whole if point in part] == part
    assert choose_values(axes, sample=99) == whole


def test_names_stay_short_apart_and_inside_the_folder(read, tmp_path):
    long = "x" * 300
    found = build(
        [f"lora.target_modules={long}1,{long}2,../../up,A,a", "lora.exclude_modules=b,c"],
        read,
        tmp_path,
    )
    names = [each.name for each in found]
    assert len({name.casefold() for name in names}) == len(names)
    assert all(len(name) < 120 and "/" not in name for name in names)
    assert all(each.recipe.output_folder.parent == tmp_path for each in found)


def test_keys_that_end_alike_are_named_in_full(read, tmp_path):
    axes, _ = parse_axes(["a.lr=1,2", "b.lr=3,4"])
    seeds = iter(range(9))
    found = build_candidates(
        axes,
        choose_values(axes),
        lambda _: read([f"train.seed={next(seeds)}"]),
        folder=tmp_path,
        where="recipe.yaml",
    )
    assert found[0].name == "a.lr=1,b.lr=3"


def test_a_recipe_that_cannot_be_read_at_all_is_said_as_it_is(tmp_path):
    def read(_):
        raise ConfigError("no such recipe", where="x.yaml")

    with pytest.raises(ConfigError, match="no such recipe"):
        build(["lora.r=1,2"], read, tmp_path)
