"""Held-out loss against a loss computed in the plainest way."""

import math

import pytest
import torch
from torch.nn import functional
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from ince.data import Example, collate, pack_rows
from ince.errors import DataError
from ince.evaluate import heldout_loss, target_losses


def examples(count: int, seed: int = 0) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    made: list[Example] = []
    for number in range(count):
        length = int(torch.randint(2, 24, (), generator=generator))
        ids = torch.randint(3, 64, (length,), generator=generator).tolist()
        targets = [False, *(torch.rand(length - 1, generator=generator) < 0.6).tolist()]
        targets[-1] = True
        made.append(Example(tuple(ids), tuple(targets), f"row {number}"))
    return made


def plain_losses(model, example: Example) -> list[float]:
    ids = torch.tensor([example.input_ids])
    with torch.no_grad():
        scores = model(input_ids=ids).logits[0].float().log_softmax(-1)
    return [
        -float(scores[t - 1, example.input_ids[t]])
        for t, wanted in enumerate(example.targets)
        if wanted
    ]


@pytest.fixture
def model(tiny_llama):
    return tiny_llama(seed=1, vocab_size=64, initializer_range=0.3)


@pytest.fixture
def capped():
    """Sliding windows, and logits that are capped after the output layer."""
    torch.manual_seed(2)
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            sliding_window=5,
            layer_types=["sliding_attention", "full_attention"],
            final_logit_softcapping=2.0,
            initializer_range=0.3,
        )
    ).eval()


@pytest.mark.parametrize("kind", ["model", "capped"])
def test_packed_loss_is_that_of_each_document_alone(kind: str, request) -> None:
    model = request.getfixturevalue(kind)
    documents = examples(20)
    rows = pack_rows(documents, range(20), 48)
    assert len(rows) < 15
    batches = [collate(rows[i : i + 4], 0) for i in range(0, len(rows), 4)]

    result = heldout_loss(model, batches)

    alone = {example.source: plain_losses(model, example) for example in documents}
    flat = [loss for losses in alone.values() for loss in losses]
    assert result.num_targets == len(flat)
    assert result.num_tokens == sum(batch.num_tokens for batch in batches)
    assert result.loss == pytest.approx(sum(flat) / len(flat), abs=1e-5)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert {d.source for d in result.documents} == set(alone)
    for document in result.documents:
        assert document.num_targets == len(alone[document.source])
        assert document.loss_sum == pytest.approx(sum(alone[document.source]), abs=1e-4)


def test_beginning_that_documents_share_is_read_once_and_changes_nothing(model) -> None:
    beginning = tuple(range(3, 33))
    documents = [
        Example((*beginning, *tail), (*[False] * 30, *[True] * len(tail)), f"row {i}")
        for i, tail in enumerate([(40, 41), (40, 42, 43), (44,), (40, 41, 45, 46)])
    ]
    rows = pack_rows(documents, range(4), 64)
    result = heldout_loss(model, [collate(rows, 0)])
    for document, example in zip(
        sorted(result.documents, key=lambda d: d.source), documents, strict=True
    ):
        assert document.loss_sum == pytest.approx(sum(plain_losses(model, example)), abs=1e-4)


def test_long_documents_weigh_more(model) -> None:
    short, long = examples(2, seed=5)
    losses = [plain_losses(model, short), plain_losses(model, long)]
    result = heldout_loss(model, [collate([short], 0), collate([long], 0)])
    flat = [*losses[0], *losses[1]]
    assert result.loss == pytest.approx(sum(flat) / len(flat), abs=1e-5)


def test_logits_are_made_at_targets_only(model) -> None:
    documents = examples(6)
    batch = collate(documents, 0)
    shapes: list[tuple[int, ...]] = []
    handle = model.lm_head.register_forward_hook(lambda *step: shapes.append(step[2].shape))
    heldout_loss(model, [batch])
    handle.remove()
    assert shapes == [(1, batch.num_targets, 64)]


def test_model_is_left_as_it_was(model) -> None:
    model.train()
    heldout_loss(model, [collate(examples(2), 0)])
    assert model.training
    assert not model.lm_head._forward_pre_hooks
    with pytest.raises(TypeError):
        target_losses(model, torch.ones(1, 3).long(), torch.ones(1, 3).long(), wrong=1, input_ids=2)
    assert not model.lm_head._forward_pre_hooks


def test_more_targets_than_are_scored_at_once(model) -> None:
    ids = torch.randint(3, 64, (3, 130), generator=torch.Generator().manual_seed(0))
    losses, index = target_losses(model, ids, ids)
    assert losses.shape == (3 * 129,)
    assert index[0].tolist() == [0, 1]
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    expected = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    torch.testing.assert_close(losses.float(), expected, atol=1e-5, rtol=1e-5)


def test_nothing_to_measure(model) -> None:
    silent = Example((3, 4, 5), (False, False, False), "row 1")
    with pytest.raises(DataError, match="nothing to measure"):
        heldout_loss(model, [collate([silent], 0)])
    with pytest.raises(DataError, match="nothing to measure"):
        heldout_loss(model, [])


def test_progress(model) -> None:
    told: list[int] = []
    heldout_loss(model, [collate(examples(2), 0)] * 3, progress=told.append)
    assert told == [1, 2, 3]


def test_a_batch_in_parts_has_the_same_losses_in_the_same_order(model):
    made = examples(14)
    batch = collate(pack_rows(made, range(14), 40), 0)
    whole = heldout_loss(model, [batch])
    rows_seen = []

    def scarce(_model, _arguments, named):
        rows_seen.append(len(named["input_ids"]))
        if rows_seen[-1] > 1:
            raise MemoryError

    with_limit = model.register_forward_pre_hook(scarce, with_kwargs=True)
    found = heldout_loss(model, [batch])
    with_limit.remove()
    assert rows_seen.count(1) == len(batch.input_ids) > 2
    assert [d.source for d in found.documents] == [d.source for d in whole.documents]
    assert found.num_targets == whole.num_targets
    assert found.num_tokens == whole.num_tokens
    for ours, theirs in zip(found.documents, whole.documents, strict=True):
        assert ours.loss_sum == pytest.approx(theirs.loss_sum, rel=1e-5)
