"""What can be combined, and how every mistake is said."""

import math

import pytest

from ince.errors import AdapterError, ConfigError
from ince.lora.combine.check import KINDS, check_combination

RANKS = {"one": 4, "two": 4, "big": 16}
NAMES, WEIGHTS = ["one", "two"], [1.0, -0.5]


def check(kind="svd", adapters=NAMES, weights=WEIGHTS, ranks=RANKS, **options):
    return check_combination(kind, adapters, weights, ranks, **options)


def problems(**values):
    with pytest.raises(ConfigError) as caught:
        check(**values)
    return {problem.key: str(problem) for problem in caught.value.problems}


def test_there_are_eleven():
    on_factors = {"linear", "ties", "dare_ties", "dare_linear", "magnitude_prune"}
    dense = {"ties_svd", "dare_ties_svd", "dare_linear_svd", "magnitude_prune_svd"}
    assert set(KINDS) == {"svd", "cat"} | on_factors | dense


@pytest.mark.parametrize("kind", KINDS)
def test_the_new_rank(kind):
    on = KINDS[kind].on
    assert check(kind, density=0.5).rank == (8 if on == "rank" else 4)
    mixed = {"adapters": ["one", "big"], "density": 0.5}
    if on == "factors":
        with pytest.raises(AdapterError, match="different ranks") as caught:
            check(kind, **mixed)
        assert caught.value.got == "one: 4, big: 16"
        assert "svd" in caught.value.do
    else:
        assert check(kind, **mixed).rank == (20 if on == "rank" else 16)
    if on == "delta":
        assert check(kind, density=0.5, svd_rank=3).rank == 3


@pytest.mark.parametrize("kind", KINDS)
def test_one_adapter_is_linear(kind):
    combination = check(kind, ["big"], [2], svd_rank=3)
    assert (combination.kind, combination.rank) == ("linear", 16)


def test_options_are_carried_and_others_have_no_effect():
    got = check(
        "ties_svd",
        density=1,
        majority_sign_method="frequency",
        svd_clamp=0.99,
        svd_driver="gesvd",
        svd_full_matrices=False,
    )
    assert (got.density, got.majority_sign_method, got.svd_clamp, got.svd_driver) == (
        1.0,
        "frequency",
        0.99,
        "gesvd",
    )
    assert check("linear", svd_rank=64, density=0.5).rank == 4


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.pruning])
def test_pruning_needs_a_density(kind):
    assert problems(kind=kind).keys() == {"density"}
    for density in (-0.1, 1.1, math.nan, math.inf, "half", True):
        assert problems(kind=kind, density=density).keys() == {"density"}
    if KINDS[kind].pruning == "random":
        assert "nothing to scale up" in problems(kind=kind, density=0)["density"]
    else:
        assert check(kind, density=0).density == 0


@pytest.mark.parametrize("kind", ["ties-svd", "TIES_SVD", "tie_svd"])
def test_a_kind_that_is_not_known(kind):
    assert "did you mean 'ties_svd'?" in problems(kind=kind)["combination_type"]
    assert "combination_type" in problems(kind=kind, adapters=["one"], weights=[1.0])


def test_a_kind_that_resembles_none_lists_all():
    text = problems(kind="average?!")["combination_type"]
    assert all(kind in text for kind in KINDS)


def test_all_mistakes_at_once():
    found = problems(
        kind="tiess",
        weights=[1.0],
        density=2,
        svd_rank=0,
        svd_clamp=-1,
        svd_driver="gesv",
        svd_full_matrices="no",
        majority_sign_method="sum",
    )
    assert found.keys() == {
        "combination_type",
        "weights",
        "density",
        "svd_rank",
        "svd_clamp",
        "svd_driver",
        "svd_full_matrices",
        "majority_sign_method",
    }
    assert "1 weights for 2 adapters" in found["weights"]


@pytest.mark.parametrize("weight", [math.nan, math.inf, "1", None, True])
def test_weights_are_finite_numbers(weight):
    assert "'two'" in problems(weights=[1.0, weight])["weights"]


@pytest.mark.parametrize("rank", [0, -1, 2.0, True, "4"])
def test_svd_rank_is_a_whole_number(rank):
    assert problems(svd_rank=rank).keys() == {"svd_rank"}


@pytest.mark.parametrize(
    ("adapters", "text"),
    [
        ([], "no adapters"),
        ("one", "no adapters"),
        (["one", "one"], "more than once"),
        (["one", "towo"], "no adapter of this name"),
    ],
)
def test_names(adapters, text):
    with pytest.raises(AdapterError, match=text):
        check("svd", adapters, [1.0] * len(adapters))


def test_a_name_that_is_nearly_one():
    with pytest.raises(AdapterError, match="did you mean 'two'"):
        check("svd", ["one", "tow"])


def test_an_adapter_without_rank():
    with pytest.raises(AdapterError, match="no rank"):
        check("svd", ranks={"one": 4, "two": 0})
