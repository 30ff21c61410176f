import math

import pytest
import torch
from torch import nn

from ince.data import Example, collate
from ince.data.packing import Row
from ince.errors import TrainingError
from ince.train.noise import document_lengths, embedding_noise

WIDTH = 64


class Embedder(nn.Module):
    """As much of a language model as noise needs."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.embed = nn.Embedding(50, WIDTH, dtype=dtype)

    def get_input_embeddings(self):
        return self.embed

    def forward(self, ids):
        return self.embed(ids)


def example(ids, first_target):
    return Example(tuple(ids), tuple(i >= first_target for i in range(len(ids))), "x")


@pytest.fixture
def batch():
    """A row of two documents, 5 and 17 long; a row of two that share 6 tokens, 9 and 12 long."""
    apart = Row((example(range(1, 6), 1), example(range(10, 27), 1)))
    begin = list(range(30, 36))
    together = Row((example([*begin, 1, 2, 3], 7), example([*begin, 9, 8, 7, 6, 5, 4], 7)))
    assert len(together.segments) == 3
    return collate([apart, together], pad_id=0, pad_to_multiple=8)


def noise_of(model, batch, **settings):
    plain = model(batch.input_ids)
    with embedding_noise(model, batch, **settings):
        return model(batch.input_ids) - plain


def test_lengths_are_those_of_documents_and_the_longest_where_they_share(batch):
    lengths = document_lengths(batch)
    assert lengths[0].tolist() == [5] * 5 + [17] * 17 + [0] * 2
    assert lengths[1].tolist() == [12] * 6 + [9] * 3 + [12] * 6 + [0] * 9


def test_noise_is_uniform_with_the_scale_of_each_document(batch):
    torch.manual_seed(0)
    noise = noise_of(Embedder(), batch, alpha=5.0, seed=3)
    lengths = document_lengths(batch)
    for length in (5, 17):
        found = noise[0][lengths[0] == length]
        bound = 5.0 / math.sqrt(length * WIDTH)
        assert found.abs().max() <= bound * (1 + 1e-5)
        assert found.abs().max() > 0.95 * bound
        assert found.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert abs(found.mean().item()) < 0.2 * bound


def test_documents_have_noise_of_one_length_whatever_theirs_is(batch):
    """The reason for the root: its norm is α / √3 in expectation."""
    noise = noise_of(Embedder(), batch, alpha=5.0, seed=3)
    lengths = document_lengths(batch)
    for length in (5, 17):
        norm = noise[0][lengths[0] == length].norm().item()
        assert norm == pytest.approx(5.0 / math.sqrt(3), rel=0.1)


def test_padding_gets_none(batch):
    noise = noise_of(Embedder(), batch, alpha=5.0, seed=3)
    assert not noise[batch.segment_ids == 0].any()
    assert noise[batch.segment_ids != 0].ne(0).float().mean() > 0.99


def test_it_depends_on_its_seed_alone_and_takes_no_global_random_numbers(batch):
    model = Embedder()
    before = torch.get_rng_state()
    first = noise_of(model, batch, alpha=5.0, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(noise_of(model, batch, alpha=5.0, seed=3), first)
    assert not torch.equal(noise_of(model, batch, alpha=5.0, seed=4), first)


def test_it_is_gone_afterwards_after_an_error_too(batch):
    model = Embedder()
    plain = model(batch.input_ids)

    def fail():
        with embedding_noise(model, batch, alpha=5.0, seed=3):
            raise MemoryError

    with pytest.raises(MemoryError):
        fail()
    assert torch.equal(model(batch.input_ids), plain)


def test_embeddings_keep_their_type(batch):
    model = Embedder(torch.bfloat16)
    with embedding_noise(model, batch, alpha=5.0, seed=3):
        assert model(batch.input_ids).dtype == torch.bfloat16


def test_a_model_without_embeddings_is_refused(batch):
    with (
        pytest.raises(TrainingError, match="neftune_alpha"),
        embedding_noise(nn.Linear(2, 2), batch, alpha=5.0, seed=3),
    ):
        pass


def test_a_run_has_noise_in_its_steps_and_none_in_its_evaluations(tmp_path, small_run):
    model = small_run.model(dropout=0.0)
    ids = torch.tensor([[5, 6, 7, 8]])
    seen = []

    def evaluate():
        embeddings = model.get_input_embeddings()
        seen.append(torch.equal(embeddings(ids), nn.functional.embedding(ids, embeddings.weight)))
        return 1.0

    settings = {"dropout": 0.0, "eval_every": 2, "max_steps": 4}
    small_run(tmp_path / "a", model=model, neftune_alpha=5, evaluate=evaluate, **settings)
    small_run(tmp_path / "b", evaluate=lambda: 1.0, **settings)
    assert seen == [True, True]
    noisy, plain = (
        [line["loss"] for line in small_run.log(tmp_path / name) if "loss" in line]
        for name in ("a", "b")
    )
    assert all(a != b for a, b in zip(noisy, plain, strict=True))


def test_each_micro_batch_has_noise_of_its_own(tmp_path, small_run):
    """The same rows, cut into micro-batches, see other noise, not one pattern again and again."""
    losses = {}
    for name, micro in (("whole", None), ("cut", 32)):
        settings = {"batch_tokens": 160, "micro_batch_tokens": micro, "max_steps": 1}
        small_run(tmp_path / name, dropout=0.0, neftune_alpha=50, **settings)
        (line,) = small_run.log(tmp_path / name)
        losses[name] = line["loss"]
    assert losses["whole"] != losses["cut"]


def test_a_run_with_noise_resumes_to_the_bit(tmp_path, small_run):
    settings = {"neftune_alpha": 5, "batch_tokens": 96, "micro_batch_tokens": 32, "save_every": 2}
    whole, _ = small_run(tmp_path / "whole", **settings)
    small_run.cut(tmp_path / "cut", 3, **settings)
    torch.rand(17)
    resumed, _ = small_run(tmp_path / "cut", **settings)
    before, after = small_run.trained(whole), small_run.trained(resumed)
    assert all(torch.equal(before[name], after[name]) for name in before)
