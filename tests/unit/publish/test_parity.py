"""The parity proof counts every position, and does not hold for what is not a number."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ince.errors import ProofError
from ince.publish import Parity, assert_parity, compare_logits


class Fake(nn.Module):
    """Logits from a table, as a language model gives them."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)
        self.modes = []

    def forward(self, input_ids, use_cache):
        self.modes.append(self.training)
        return SimpleNamespace(logits=self.table[input_ids])


TABLE = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 0.0]])


def test_equal_models():
    parity = compare_logits(Fake(TABLE), Fake(TABLE.clone()), [torch.tensor([[0, 1], [1, 1]])])
    assert parity == Parity(0.0, 0.0, 1.0, 0.0, 4)
    assert_parity(parity, 0.0)


def test_the_numbers_by_hand():
    other = TABLE.clone()
    other[1] = torch.tensor([2.0, 2.5, 0.0])
    # 300 positions, so that they are compared in more than one piece; every third differs.
    ids = torch.tensor([0, 0, 1]).repeat(100)[None]
    parity = compare_logits(Fake(TABLE), Fake(other), [ids])
    assert parity.num_positions == 300
    assert parity.max_abs_logit_diff == 2.5
    assert parity.mean_abs_logit_diff == pytest.approx(2.5 / 9)
    assert parity.argmax_agreement == pytest.approx(2 / 3)
    p, q = TABLE[1].double().softmax(0), other[1].double().softmax(0)
    assert parity.kl_mean == pytest.approx(float((p * (p / q).log()).sum()) / 3, rel=1e-5)
    with pytest.raises(ProofError, match=r"66\.67%"):
        assert_parity(parity, 2.0)


def test_models_are_compared_in_evaluation_mode_and_put_back():
    a, b = Fake(TABLE).train(), Fake(TABLE).eval()
    compare_logits(a, b, [torch.tensor([[0]])])
    assert a.modes == b.modes == [False]
    assert a.training
    assert not b.training


def test_not_a_number_is_no_parity():
    broken = TABLE.clone()
    broken[0, 0] = torch.nan
    parity = compare_logits(
        Fake(TABLE), Fake(broken), [torch.tensor([[0, 1]]), torch.tensor([[1]])]
    )
    with pytest.raises(ProofError):
        assert_parity(parity, 1e9)


def test_nothing_to_compare():
    with pytest.raises(ProofError, match="nothing to compare"):
        compare_logits(Fake(TABLE), Fake(TABLE), [])
    with pytest.raises(ProofError, match="different shapes"):
        compare_logits(Fake(TABLE), Fake(TABLE[:, :2]), [torch.tensor([[0]])])
