"""Tokens are drawn by the distribution that a request's options define, whoever shares the step."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ince.serve.sampling import NO_TOKEN, RowState, SamplingOptions, choose

NUM_TOKENS = 12
LOGITS = torch.tensor([2.0, -1.0, 0.5, 1.9, -3.0, 0.0, 1.0, -0.5, 2.0, -8.0, 0.25, 1.5])
# The 99.9% quantile of chi-square for 11 degrees of freedom; fewer have a lower one.
LARGEST_CHI_SQUARE = 31.3


def defined(logits: np.ndarray, options: SamplingOptions, prompt: list[int], answer: list[int]):
    """The distribution, by its definition: one token after the other, in double precision."""
    z = logits.astype(np.float64).copy()
    for token, bias in options.logit_bias.items():
        z[token] += bias
    for token in {*prompt, *answer}:
        p = options.repetition_penalty
        z[token] = z[token] / p if z[token] > 0 else z[token] * p
    for token, times in Counter(answer).items():
        z[token] -= options.frequency_penalty * times + options.presence_penalty
    chances = np.exp((z - z.max()) / options.temperature)
    chances[chances < options.min_p * chances.max()] = 0
    if options.top_k > 0:
        chances[chances < np.sort(chances)[::-1][options.top_k - 1]] = 0
    chances /= chances.sum()
    order = np.argsort(-chances, kind="stable")
    before = np.concatenate([[0], np.cumsum(chances[order])[:-1]])
    # Tokens as likely as the last that is kept are kept too.
    chances[chances < chances[order][before < options.top_p].min()] = 0
    return chances / chances.sum()


OPTIONS = [
    {},
    {"temperature": 0.3},
    {"temperature": 3.0, "top_k": 4},
    {"top_k": 1},  # two are as likely as the first
    {"top_p": 0.6},
    {"top_p": 1e-6},
    {"min_p": 0.2},
    {"temperature": 1.7, "min_p": 0.1, "top_k": 7, "top_p": 0.8},
    {"presence_penalty": 1.5, "frequency_penalty": -0.4},
    {"repetition_penalty": 1.6},
    {"repetition_penalty": 0.7, "presence_penalty": -0.5, "logit_bias": {9: 10.0, 0: -100.0}},
]


@pytest.mark.parametrize("changes", OPTIONS, ids=lambda changes: "-".join(changes) or "plain")
def test_tokens_are_drawn_by_the_defined_distribution(changes):
    options = SamplingOptions(max_tokens=9, **changes)
    prompt, answer, num = [2, 2, 4], [3, 8, 3], 4000
    rows = []
    for seed in range(num):
        row = RowState(options, prompt, seed)
        for token in answer:
            row.add(token)
        rows.append(row)
    tokens, _ = choose(LOGITS.expand(num, -1), rows)
    expected = num * defined(LOGITS.numpy(), options, prompt, answer)
    found = np.bincount(tokens, minlength=NUM_TOKENS)
    assert found[expected == 0].sum() == 0
    often = expected > 5
    assert ((found - expected)[often] ** 2 / expected[often]).sum() < LARGEST_CHI_SQUARE
    assert found[~often].sum() < 20


option_changes = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.2, 1.0, 1e-4, 50.0]),
        "top_p": st.floats(0.01, 1),
        "top_k": st.integers(-1, 20),
        "min_p": st.floats(0, 1),
        "presence_penalty": st.floats(-2, 2),
        "repetition_penalty": st.floats(0.1, 3),
        "logit_bias": st.dictionaries(st.integers(0, NUM_TOKENS - 1), st.floats(-100, 100)),
        "logprobs": st.integers(0, 4),
    },
)


@settings(max_examples=60)
@given(st.lists(option_changes, min_size=1, max_size=6), st.integers(0, 2**31))
def test_what_a_row_says_depends_on_no_other(changes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(len(changes), NUM_TOKENS, generator=generator)
    given_logits = logits.clone()

    def rows() -> list[RowState]:
        made = [
            RowState(SamplingOptions(max_tokens=4, **each), [1, 5], seed + b)
            for b, each in enumerate(changes)
        ]
        for row in made:
            row.add(7)
        return made

    tokens, logprobs = choose(logits, rows())
    assert torch.equal(logits, given_logits)
    for b, row in enumerate(rows()):
        assert choose(logits[b : b + 1], [row]) == ([tokens[b]], [logprobs[b]])


def test_a_token_is_the_same_after_its_row_was_taken_out_and_computed_again():
    options = SamplingOptions(max_tokens=8, seed=-4)
    first, again = RowState(options, [1], seed=0), RowState(options, [1], seed=99)
    said = []
    for _ in range(8):
        (token,), _ = choose(LOGITS[None], [first])
        first.add(token)
        said.append(token)
    for token in said[:5]:
        again.add(token)
    for token in said[5:]:
        assert choose(LOGITS[None], [again])[0] == [token]
        again.add(token)
    assert len(set(said)) > 1


def test_seeds_give_numbers_that_are_spread_evenly():
    rows = [RowState(SamplingOptions(max_tokens=1), [], seed) for seed in range(2000)]
    counts, _ = np.histogram([row.uniform() for row in rows], bins=10, range=(0, 1))
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # 99.9% for 9 degrees of freedom


def test_a_row_that_overflows_disturbs_no_other():
    logits = LOGITS.repeat(5, 1)
    logits[1, 3] = torch.nan
    logits[2, 0] = torch.inf
    logits[3] = -torch.inf
    greedy = SamplingOptions(max_tokens=1, temperature=0, logprobs=2)
    options = [greedy, greedy, replace(greedy, temperature=1.0), greedy, greedy]
    rows = [RowState(each, [], 0) for each in options]
    tokens, logprobs = choose(logits, rows)
    assert tokens == [0, NO_TOKEN, NO_TOKEN, NO_TOKEN, 0]
    assert [row.error is None for row in rows] == [True, False, False, False, True]
    assert logprobs[1:4] == [None] * 3
    assert logprobs[0] is not None


def test_log_probabilities_are_the_model_s_own():
    options = SamplingOptions(
        max_tokens=1, temperature=0, logit_bias={9: 100}, presence_penalty=1, logprobs=3
    )
    (token,), (found,) = choose(LOGITS[None].bfloat16(), [RowState(options, [], 0)])
    expected = LOGITS.bfloat16().float().log_softmax(-1)
    assert token == 9
    assert found.token == 9
    assert found.logprob == pytest.approx(expected[9].item(), abs=1e-5)
    assert {token for token, _ in found.top} == {0, 8, 3}
    assert [value for _, value in found.top] == pytest.approx(
        expected.sort(descending=True).values[:3].tolist(), abs=1e-5
    )


def test_a_wide_vocabulary_is_cut_off_where_its_sorted_form_is():
    logits = torch.zeros(1, 5000)
    logits[0, :10] = 0.5
    rows = [RowState(SamplingOptions(max_tokens=1, top_p=0.9), [], seed) for seed in range(100)]
    tokens, _ = choose(logits.expand(100, -1), rows)
    assert max(tokens) > 1024  # all beyond the first ten are as likely as the last kept


def test_no_rows_need_no_logits():
    assert choose(torch.empty(0, NUM_TOKENS), []) == ([], [])
