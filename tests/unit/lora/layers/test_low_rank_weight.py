"""A parameter with low-rank updates equals the sum, in every product that modules make of it."""

import pytest
import torch
from torch.nn import functional as F

from ince.lora.layers.low_rank_weight import LowRankUpdate, LowRankWeight

E, OUT, IN, R = 3, 8, 4, 2


def made(*, stacked=True, flipped=False, num_updates=1, p=0.0, dtype=torch.float64):
    torch.manual_seed(0)
    lead = (E,) if stacked else ()
    shape = (*lead, IN, OUT) if flipped else (*lead, OUT, IN)
    updates = [
        LowRankUpdate(
            torch.randn(*lead, R, IN, dtype=dtype).requires_grad_(),
            torch.randn(*lead, OUT, R, dtype=dtype).requires_grad_(),
            0.5,
            p,
        )
        for _ in range(num_updates)
    ]
    return LowRankWeight(torch.randn(shape, dtype=dtype), updates, flipped=flipped)


def total(weight):
    """W + s · B A by hand."""
    change = sum(update.s * update.b @ update.a for update in weight.updates)
    return weight.weight + (change.mT if weight.flipped else change)


def inputs(*shape):
    torch.manual_seed(1)
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("num_updates", [1, 2])
def test_products_are_those_of_the_sum(flipped, num_updates):
    weight = made(flipped=flipped, num_updates=num_updates)
    whole = total(weight)
    right, left = (IN, OUT) if flipped else (OUT, IN)
    index = torch.tensor([2, 0, 0, 1])
    cases = {
        "linear": lambda w: F.linear(inputs(5, left), w[1]),
        "linear with a bias": lambda w: F.linear(inputs(5, left), w[1], inputs(right)),
        "by keywords": lambda w: F.linear(inputs(5, left), weight=w[1], bias=inputs(right)),
        "matmul": lambda w: inputs(5, right) @ w[torch.tensor(2)],
        "mm": lambda w: torch.mm(inputs(5, right), w[0]),
        "addmm": lambda w: torch.addmm(inputs(left), inputs(5, right), w[0]),
        "on the left": lambda w: w[0] @ inputs(left, 2),
        "bmm": lambda w: torch.bmm(inputs(E, 5, right), w),
        "picked": lambda w: torch.bmm(w[index], inputs(4, left, 1)),
        "picked on the right": lambda w: torch.bmm(inputs(4, 1, right), w[index]),
        "turned": lambda w: inputs(5, left) @ w[1].t(),
        "T": lambda w: inputs(5, left) @ w[1].T,
        "transposed stack": lambda w: torch.bmm(inputs(E, 5, left), w.transpose(-2, -1)),
        "something else": lambda w: torch.einsum("eoi,ni->neo", w, inputs(5, left)),
        "a slice": lambda w: w[1:],
        "its norm": lambda w: w.norm(),
        "another turn": lambda w: w.transpose(0, 1) * 1,
    }
    for name, use in cases.items():
        got, wanted = use(weight), use(whole)
        torch.testing.assert_close(got, wanted, msg=lambda text, name=name: f"{name}: {text}")


def test_a_matrix_alone():
    for flipped in (False, True):
        weight = made(stacked=False, flipped=flipped)
        whole = total(weight)
        x = inputs(5, IN)
        if flipped:
            torch.testing.assert_close(x @ weight, x @ whole)
        else:
            torch.testing.assert_close(F.linear(x, weight), F.linear(x, whole))
        torch.testing.assert_close(weight[1], whole[1])


def test_grouped_products():
    """Ranks are padded to what the kernel takes, and nothing comes of it."""
    weight = made(dtype=torch.float32)
    torch.manual_seed(1)
    x = torch.randn(6, IN)
    offs = torch.tensor([2, 2, 6], dtype=torch.int32)
    got = F.grouped_mm(x, weight.transpose(-2, -1), offs=offs)
    parts = [x[:2] @ total(weight)[0].mT, x[2:] @ total(weight)[2].mT]
    torch.testing.assert_close(got, torch.cat(parts))


def test_it_looks_like_the_tensor():
    weight = made()
    assert weight.shape == (E, OUT, IN)
    assert weight.size(1) == OUT
    assert (weight.dim(), weight.ndim, len(weight)) == (3, 3, E)
    assert (weight.dtype, weight.device) == (torch.float64, torch.device("cpu"))
    assert weight.mT.shape == (E, IN, OUT)
    with pytest.raises(AttributeError):
        _ = weight._none


def test_gradients_are_those_of_the_sum():
    one, other = made(), made()
    x = inputs(5, IN)
    sum(F.linear(x, one[e]).square().sum() for e in (0, 2)).backward()
    sum(F.linear(x, total(other)[e]).square().sum() for e in (0, 2)).backward()
    for got, wanted in zip(one.updates[0][:2], other.updates[0][:2], strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)
    assert not one.updates[0].a.grad[1].any()


@pytest.mark.parametrize("flipped", [False, True])
def test_dropout_is_right_on_average_and_by_row(flipped):
    weight = made(flipped=flipped, p=0.5)
    x = inputs(1, IN).expand(4000, IN)
    torch.manual_seed(0)
    y = x @ weight[0] if flipped else F.linear(x, weight[0])
    plain = made(flipped=flipped)
    wanted = x[:1] @ plain[0] if flipped else F.linear(x[:1], plain[0])
    assert y.std(0).max() > 0.1  # rows lose features of their own
    torch.testing.assert_close(y.mean(0, keepdim=True), wanted, rtol=0, atol=0.2)


def test_dropout_of_the_whole_call_where_there_is_no_product():
    torch.manual_seed(3)
    weight = made(p=0.5)
    change = weight.dense() - weight.weight
    a, b, s, _ = weight.updates[0]
    kept = change.abs().sum((0, 1)) > 0
    torch.testing.assert_close(change, torch.where(kept, 2 * s * b @ a, 0.0))
    assert weight.dense() is weight.dense()  # the same in all of one forward
