"""What a request asks for is refused by its name when it is out of range."""

import math

import pytest

from ince.errors import InputError
from ince.serve.sampling import SamplingOptions
from ince.serve.sampling.options import MAX_LOGPROBS

WRONG = [
    ("max_tokens", 0),
    ("max_tokens", 1.5),
    ("max_tokens", True),
    ("temperature", -0.1),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", "1"),
    ("top_p", 0.0),
    ("top_p", 1.01),
    ("top_k", -2),
    ("min_p", 2.0),
    ("presence_penalty", 2.5),
    ("frequency_penalty", -3),
    ("repetition_penalty", 0.0),
    ("logit_bias", {1: 101}),
    ("logit_bias", {-1: 1}),
    ("logit_bias", {"1": 1}),
    ("logit_bias", dict.fromkeys(range(2000), 1.0)),
    ("seed", 2**64),
    ("stop", "end"),
    ("stop", ("",)),
    ("stop", (3,)),
    ("stop", ("x",) * 65),
    ("stop", ("x" * 1001,)),
    ("stop_token_ids", frozenset({-1})),
    ("logprobs", MAX_LOGPROBS + 1),
    ("prompt_logprobs", -1),
]


@pytest.mark.parametrize(
    ("name", "value"), WRONG, ids=[f"{name}{i}" for i, (name, _) in enumerate(WRONG)]
)
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(InputError) as caught:
        SamplingOptions(**{"max_tokens": 5, name: value})
    assert caught.value.where == name


def test_tokens_beyond_the_vocabulary_are_refused():
    SamplingOptions(max_tokens=1, logit_bias={9: 1}).check_vocabulary(10)
    for options in ({"logit_bias": {10: 1.0}}, {"stop_token_ids": frozenset({11})}):
        with pytest.raises(InputError, match="no such token"):
            SamplingOptions(max_tokens=1, **options).check_vocabulary(10)


def test_the_defaults_change_nothing():
    options = SamplingOptions(max_tokens=1)
    assert not options.changes_logits
    assert not options.is_greedy
    assert SamplingOptions(max_tokens=1, temperature=0).is_greedy
