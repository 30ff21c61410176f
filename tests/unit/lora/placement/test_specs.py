import pytest

from ince.errors import ConfigError
from ince.lora import AdaLoraConfig, LoraConfig, VeraConfig
from ince.lora.placement.specs import specs_of, value_of

NAMES = ["a.q", "a.v"]


def test_lora_has_its_patterns_applied():
    config = LoraConfig(
        r=4, lora_alpha=8, rank_pattern={"v": 2}, alpha_pattern={"v": 6}, use_dora=True
    )
    specs = specs_of(config, NAMES)
    assert [(s.r, s.alpha, s.scaling, s.variant) for s in specs.values()] == [
        (4, 8, 2.0, "dora"),
        (2, 6, 3.0, "dora"),
    ]


def test_vera_has_no_scale():
    spec = specs_of(VeraConfig(r=7, vera_dropout=0.5), NAMES)["a.v"]
    assert (spec.r, spec.alpha / spec.r, spec.scaling, spec.dropout) == (7, 1, 1.0, 0.5)


@pytest.mark.parametrize(("alpha", "expected"), [(8, 8), (-1, 4), (0, 4)])
def test_adalora_is_scaled_by_the_ranks_that_it_began_with(alpha, expected):
    pattern = {"a.q.lora_E": (True, False, False, True)}
    config = AdaLoraConfig(
        init_r=4, target_r=2, total_step=9, lora_alpha=alpha, rank_pattern=pattern
    )
    specs = specs_of(config, NAMES)
    assert [spec.r for spec in specs.values()] == [2, 4]
    assert {spec.scaling for spec in specs.values()} == {expected / (4 + 1e-5)}
    assert specs["a.q"].kept == pattern["a.q.lora_E"]
    assert specs["a.v"].kept is None


def test_all_mistakes_of_a_rank_pattern_are_said():
    pattern = {"a.k.lora_E": (True,) * 4, "a.q.lora_E": (True,)}
    config = AdaLoraConfig(init_r=4, target_r=2, total_step=9, rank_pattern=pattern)
    with pytest.raises(ConfigError) as caught:
        specs_of(config, NAMES)
    assert [problem.key for problem in caught.value.problems] == [
        "rank_pattern.a.k",
        "rank_pattern.a.q",
    ]


def test_the_first_pattern_that_matches_counts():
    table = {"v": 1, "a.v": 2}
    assert [value_of(table, name, 0) for name in ("x.a.v", "v", "a.w")] == [1, 1, 0]
