"""Patterns that could hold up a server are refused, and those that people write are not."""

import pytest

from ince.errors import AdapterError
from ince.serve.adapters.patterns import check_patterns

USUAL = [
    "all-linear",
    r".*\.(q_proj|v_proj)$",
    r"model\.layers\.\d\.mlp\.(up|down)_proj",
    r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|k_proj|up_proj)).*?",
    r"model\.layers\.(?:[0-9]|1[0-5])\.self_attn\.[qkvo]_proj",
    r".*lay\(er\*s\+.[*+(]+",
]
HOSTILE = [
    "(a+)+$",
    r"([a-z]+\.?)*x",
    "((model)*)*",
    "(a|a)*b",
    "(a|aa)+",
    "(.*a){25}",
    ".*.*.*.*.*x",
    "x" * 2001,
]


@pytest.mark.parametrize("pattern", USUAL)
def test_usual_patterns_pass(pattern):
    check_patterns({"target_modules": pattern, "rank_pattern": {pattern: 4}}, where="here")


@pytest.mark.parametrize("number", range(len(HOSTILE)))
@pytest.mark.parametrize("key", ["target_modules", "exclude_modules", "alpha_pattern"])
def test_patterns_that_may_take_for_ever_are_refused(number, key):
    pattern = HOSTILE[number]
    value = {pattern: 4} if key == "alpha_pattern" else pattern
    with pytest.raises(AdapterError) as caught:
        check_patterns({key: value}, where="here")
    assert caught.value.where == f"here: {key}"


def test_names_in_a_list_are_no_patterns():
    check_patterns({"target_modules": ["(a+)+"], "rank_pattern": None, "r": 3}, where="here")


def test_there_may_be_many_patterns_but_not_any_number():
    check_patterns({"rank_pattern": {f"layers.{i}.q": 2 for i in range(900)}}, where="here")
    with pytest.raises(AdapterError, match="too many"):
        check_patterns({"rank_pattern": {f"layers.{i}.q": 2 for i in range(1100)}}, where="here")
