"""Log probabilities equal the definition, however many positions there are."""

import pytest
import torch

from ince.serve.sampling import token_logprobs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_are_the_logarithm_of_the_softmax(dtype):
    logits = (5 * torch.randn(130, 40, generator=torch.Generator().manual_seed(1))).to(dtype)
    tokens = [n % 40 for n in range(130)]
    expected = logits.double().log_softmax(-1)
    found = token_logprobs(logits, tokens, 3)
    assert [each.token for each in found] == tokens
    for n, each in enumerate(found):
        assert each.logprob == pytest.approx(expected[n, tokens[n]].item(), abs=1e-4)
        likeliest = expected[n].topk(3).values.tolist()
        assert [value for _, value in each.top] == pytest.approx(likeliest, abs=1e-4)
        assert [expected[n, token].item() for token, _ in each.top] == likeliest


def test_no_more_alternatives_than_there_are_tokens():
    (found,) = token_logprobs(torch.zeros(1, 4), [2], 20)
    assert len(found.top) == 4
    assert token_logprobs(torch.zeros(1, 4), [2])[0].top == ()
