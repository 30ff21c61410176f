"""How much memory may be used is written as people write it."""

import pytest

from ince.errors import ConfigError
from ince.recipe import parse_recipe
from ince.train import TrainConfig


@pytest.mark.parametrize(
    ("value", "expected"),
    [("3GiB", 3 << 30), ("512 MB", 512 * 10**6), (1 << 30, 1 << 30), (None, None)],
)
def test_bytes_or_an_amount(value, expected):
    assert TrainConfig(memory=value).memory == expected


@pytest.fixture
def parse(tmp_path):
    (tmp_path / "x.jsonl").touch()

    def made(**train):
        return parse_recipe(
            {
                "model": {"base": "x"},
                "data": {"train": str(tmp_path / "x.jsonl")},
                "train": train,
                "output": "out",
            }
        )

    return made


@pytest.mark.parametrize("value", ["", "much", "3 gibibytes", "-1GiB", "0GiB", 0, -5, 1.5, [], {}])
def test_what_is_no_amount_is_one_mistake(parse, value):
    with pytest.raises(ConfigError) as caught:
        parse(memory=value)
    (problem,) = caught.value.problems
    assert problem.key == "train.memory"


def test_patience_and_memory_may_change_while_a_run_goes_on(parse):
    plain = parse()
    changed = parse(memory="3GiB", save_retries=0, save_wait_seconds=1)
    assert plain.digest() == changed.digest() != parse(seed=8).digest()
    assert changed.train.memory == 3 << 30


@pytest.mark.parametrize(
    "wrong", [{"save_retries": -1}, {"save_wait_seconds": 0}, {"save_wait_seconds": "soon"}]
)
def test_patience_that_cannot_be(parse, wrong):
    with pytest.raises(ConfigError) as caught:
        parse(**wrong)
    assert len(caught.value.problems) == 1
