"""However rows are cut into forwards, a step's gradient is that of all of them at once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from ince.data import Example, Row
from ince.lora import LoraConfig, get_peft_model
from ince.train.parameters import trainable
from ince.train.step import accumulate, micro_batches

VOCABULARY = 23


@pytest.fixture(scope="module")
def model():
    """A Llama of one layer in float64, whose B is not zero."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    base = LlamaForCausalLM(config).requires_grad_(False)
    adapted = get_peft_model(base, LoraConfig(r=2)).double().train()
    with torch.no_grad():
        for parameter in trainable(adapted).values():
            parameter.normal_(std=0.3)
    return adapted


@st.composite
def examples(draw):
    """Of any length, with any targets: among them a single one, and all but the first."""
    length = draw(st.integers(2, 24))
    # Few different tokens, so that packed examples share their beginnings.
    ids = draw(st.lists(st.integers(3, 5), min_size=length, max_size=length))
    rest = draw(
        st.one_of(
            st.lists(st.booleans(), min_size=length - 1, max_size=length - 1),
            st.integers(0, length - 2).map(lambda at: [i == at for i in range(length - 1)]),
            st.just([True] * (length - 1)),
        )
    )
    return Example(tuple(ids), (False, *rest), f"row {draw(st.integers(0, 99))}")


packed = st.lists(examples(), min_size=1, max_size=3).map(lambda row: Row(tuple(row)))
steps = st.lists(packed, min_size=1, max_size=6).filter(
    lambda rows: any(e.num_targets for row in rows for e in row.examples)
)


def gradient(model, rows, micro_batch_tokens):
    parameters = trainable(model)
    found = accumulate(
        model,
        rows,
        parameters=parameters,
        max_grad_norm=0,
        micro_batch_tokens=micro_batch_tokens,
        pad_id=0,
        seed=3,
        step=1,
    )
    return found, {name: p.grad.clone() for name, p in parameters.items()}


@settings(max_examples=15)
@given(rows=steps, micro_batch_tokens=st.integers(1, 120))
def test_any_cut_gives_the_gradient_of_all_rows_at_once(model, rows, micro_batch_tokens):
    whole, expected = gradient(model, rows, None)
    cut, found = gradient(model, rows, micro_batch_tokens)
    largest = max(float(each.abs().max()) for each in expected.values())
    for name, each in expected.items():
        torch.testing.assert_close(found[name], each, rtol=1e-9, atol=1e-12 + 1e-10 * largest)
    assert cut.loss == pytest.approx(whole.loss, rel=1e-6)  # a loss is summed in float32
    assert cut.grad_norm == pytest.approx(whole.grad_norm, rel=1e-9)
    every = [example for row in rows for example in row.examples]
    assert cut.num_targets == whole.num_targets == sum(e.num_targets for e in every)
    assert cut.num_tokens == whole.num_tokens == sum(row.num_tokens for row in rows)
    assert cut.sources == tuple(e.source for e in every)


@settings(max_examples=8)
@given(rows=steps)
def test_a_step_weighs_targets_and_not_rows(model, rows):
    """Against the plainest form: each example alone, its losses summed, and one division."""
    whole, expected = gradient(model, rows, 1)
    parameters = trainable(model)
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    total, num_targets = 0.0, 0
    for example in (e for row in rows for e in row.examples if e.num_targets):
        found, grads = gradient(model, [Row((example,))], None)
        total += found.loss * found.num_targets
        num_targets += found.num_targets
        for name, each in grads.items():
            sums[name] += each * found.num_targets
    assert whole.num_targets == num_targets
    assert whole.loss == pytest.approx(total / num_targets, rel=1e-6)
    largest = max(float(each.abs().max()) for each in expected.values())
    for name, each in expected.items():
        # The one division is in float32, and so a factor of all.
        torch.testing.assert_close(each, sums[name] / num_targets, rtol=1e-6, atol=1e-7 * largest)


@settings(max_examples=25)
@given(rows=st.lists(packed, min_size=1, max_size=8), limit=st.integers(1, 200))
def test_micro_batches_are_the_rows_in_their_order(rows, limit):
    groups = micro_batches(rows, limit)
    assert [row for group in groups for row in group] == rows
    for group in groups:
        rectangle = len(group) * max(row.num_tokens for row in group)
        assert len(group) == 1 or rectangle <= limit
    assert micro_batches(rows, None) == [rows]
