"""Pruning, votes and sums on numbers that can be done by hand."""

import pytest
import torch

from ince.lora.combine.arithmetic import mean_of_majority, prune, weighted_sum


def test_the_largest_stay():
    tensor = torch.tensor([[1.0, -5.0, 2.0], [0.5, 4.0, -3.0]])
    expected = torch.tensor([[0.0, -5.0, 0.0], [0.0, 4.0, -3.0]])
    assert torch.equal(prune(tensor, "magnitude", 0.5), expected)
    assert torch.equal(prune(tensor.mT, "magnitude", 0.5), expected.mT)


@pytest.mark.parametrize("density", [0.0, 0.1])
def test_a_share_below_one_entry_keeps_none(density):
    assert not prune(torch.ones(3, 3), "magnitude", density).any()


@pytest.mark.parametrize("pruning", ["magnitude", "random"])
def test_at_full_density_nothing_happens_and_nothing_is_drawn(pruning):
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    tensor = torch.randn(4, 4)
    assert prune(tensor, pruning, 1.0, generator) is tensor
    assert torch.equal(generator.get_state(), state)


def test_at_random_the_expectation_stays():
    generator = torch.Generator().manual_seed(0)
    kept = prune(torch.ones(200, 200), "random", 0.25, generator)
    assert set(kept.unique().tolist()) == {0.0, 4.0}
    assert abs(float(kept.mean()) - 1) < 0.03


def test_masks_are_those_of_the_generator():
    tensor = torch.randn(5, 6)
    one = prune(tensor, "random", 0.5, torch.Generator().manual_seed(4))
    torch.manual_seed(4)
    assert torch.equal(one, prune(tensor, "random", 0.5))
    torch.manual_seed(5)
    assert not torch.equal(one, prune(tensor, "random", 0.5))


def test_weighted_sum():
    tensors = [torch.tensor([1.0, 2.0]), torch.tensor([10.0, -4.0])]
    assert weighted_sum(tensors, [2.0, -0.5]).tolist() == [-3.0, 6.0]
    assert tensors[0].tolist() == [1.0, 2.0]


def test_the_two_elections_differ_where_one_is_loud():
    tensors = [torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([-9.0])]
    assert mean_of_majority(tensors, [1.0] * 3, "total").tolist() == [-9.0]
    assert mean_of_majority(tensors, [1.0] * 3, "frequency").tolist() == [1.5]


def test_weights_do_not_vote_and_zeros_do_not_count():
    tensors = [torch.tensor([3.0, 0.0, 0.0]), torch.tensor([1.0, -2.0, 0.0])]
    got = mean_of_majority(tensors, [-1.0, 4.0], "total")
    assert got.tolist() == [(-3.0 + 4.0) / 2, -8.0, 0.0]


def test_a_draw_elects_plus():
    tensors = [torch.tensor([2.0]), torch.tensor([-2.0])]
    for method in ("total", "frequency"):
        assert mean_of_majority(tensors, [1.0, 1.0], method).tolist() == [2.0]
