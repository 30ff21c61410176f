"""A run that packs shows first that packing changes nothing, and does not train where it does."""

import contextlib
import math

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ince.data import Example
from ince.errors import ProofError
from ince.models import packed_row_attention
from ince.record import RunRecord
from ince.train.packing_proof import (
    PACKING_PROOF,
    compare_packed,
    prove_packing,
    row_to_read,
)
from ince.train.steps import StepPlan


def examples(shared=0, num=12):
    """With `shared` tokens that all begin with."""
    torch.manual_seed(3)
    made = []
    for i in range(num):
        own = torch.randint(3, 200, (5 + i % 4,)).tolist()
        ids = (*range(10, 10 + shared), *own)
        targets = (*[False] * (shared + 2), *[True] * (len(own) - 2))
        made.append(Example(ids, targets, f"rows.jsonl:{i + 1}"))
    return made


def plan_of(rows, *, packing=True):
    return StepPlan(
        rows, packing=packing, max_length=40, batch_tokens=80, epochs=1, max_steps=None, seed=7
    )


def careless(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **options):
    """An attention that looks at nothing but what comes before."""
    length = query.shape[2]
    everything = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    return sdpa_attention_forward(
        module, query, key, value, everything, dropout, scaling, **options
    )


@pytest.fixture
def careless_model(small_run):
    AttentionInterface.register("careless", careless)
    AttentionMaskInterface.register("careless", sdpa_mask)
    model = small_run.model()
    model.get_base_model().config._attn_implementation = "careless"
    return model


@pytest.mark.parametrize("shared", [0, 6])
@pytest.mark.parametrize("inside", [contextlib.nullcontext, packed_row_attention])
def test_it_holds_with_and_without_shared_beginnings(small_run, tmp_path, shared, inside):
    record = RunRecord.create(tmp_path, recipe={}, recipe_digest="d")
    model = small_run.model()
    with inside(model.get_base_model()):
        proof = prove_packing(model, plan_of(examples(shared)), pad_id=2, record=record)
    assert proof.holds
    assert proof.difference < 1e-5
    assert (proof.num_shared > 0) == (shared > 0)
    (kept,) = record["proofs"]
    assert kept["name"] == PACKING_PROOF
    assert kept["holds"]
    assert f"a row of {proof.num_documents} examples" in kept["detail"]


@pytest.mark.parametrize("shared", [0, 6])
def test_attention_that_does_not_keep_examples_apart_is_found_out(careless_model, tmp_path, shared):
    record = RunRecord.create(tmp_path, recipe={}, recipe_digest="d")
    with pytest.raises(ProofError, match="packed into one row") as caught:
        prove_packing(careless_model, plan_of(examples(shared)), pad_id=2, record=record)
    assert caught.value.exit_code == 3
    assert caught.value.where.startswith("rows.jsonl:")
    assert "data.packing: false" in caught.value.do
    assert record["proofs"][0]["holds"] is False


def test_such_a_run_does_not_begin(careless_model, small_run, tmp_path):
    before = small_run.trained(careless_model)
    with pytest.raises(ProofError):
        small_run(tmp_path, model=careless_model)
    after = small_run.trained(careless_model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert small_run.log(tmp_path) == []


def test_what_is_not_packed_needs_no_proof(careless_model):
    assert prove_packing(careless_model, plan_of(examples(), packing=False), pad_id=2) is None


def test_a_row_with_a_shared_beginning_is_preferred():
    lonely = [Example(tuple(range(200 - n, 200)), (False, *[True] * (n - 1)), "x") for n in (9, 8)]
    row = row_to_read(plan_of([*lonely, *examples(12, num=8)]))
    assert any(segment.shared for segment in row.segments)


def test_nothing_is_left_of_it(small_run):
    model, plan = small_run.model(), plan_of(examples())
    random = torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prove_packing(model, plan, pad_id=2)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_model_without_a_finite_logit_is_left_to_the_loss_guard(small_run):
    model = small_run.model()
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(math.nan)
    assert prove_packing(model, plan_of(examples()), pad_id=2) is None


@pytest.mark.long
@pytest.mark.parametrize("how", ["float32", "bfloat16", "nf4"])
def test_on_a_real_model_rounding_holds_and_carelessness_does_not(smollm2_folder, how):
    """The limit lies between the two, in each type that a run may have."""
    from ince.models import load_model
    from ince.quant import NF4Config

    quantization = NF4Config(double_quant=True) if how == "nf4" else None
    dtype = torch.bfloat16 if how == "nf4" else getattr(torch, how)
    model, tokenizer = load_model(
        smollm2_folder, quantization=quantization, dtype=dtype, device="cpu"
    )
    made = []
    for i in range(8):
        text = f"You answer in one word.\nWhat is {i} plus {i * 7}?\n"
        question = tokenizer(text)["input_ids"]
        answer = tokenizer(f"It is {i * 8}, since nobody said otherwise.")["input_ids"]
        targets = (*[False] * len(question), *[True] * len(answer))
        made.append(Example((*question, *answer), targets, f"rows:{i}"))
    plan = StepPlan(
        made, packing=True, max_length=150, batch_tokens=150, epochs=1, max_steps=None, seed=7
    )
    row = row_to_read(plan)
    with packed_row_attention(model):
        right = compare_packed(model, row, pad_id=2)
    AttentionInterface.register("careless", careless)
    AttentionMaskInterface.register("careless", sdpa_mask)
    model.config._attn_implementation = "careless"
    wrong = compare_packed(model, row, pad_id=2)
    assert right.holds
    assert right.difference < 0.5 * right.limit
    assert not wrong.holds
    assert wrong.difference > 1.5 * wrong.limit
