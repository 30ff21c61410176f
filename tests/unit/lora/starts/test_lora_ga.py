"""LoRA-GA: A and B are directions of the gradient, of the paper's size."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ince.errors import AdapterError
from ince.lora.starts.lora_ga import DIRECTIONS, SCALES, Gradient, lora_ga

R = 3


def matrix(seed=0, shape=(20, 14)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("direction", "of_a", "of_b"),
    [
        ("ArB2r", [0, 1, 2], [3, 4, 5]),
        ("A2rBr", [3, 4, 5], [0, 1, 2]),
        ("ArBr", [1, 3, 5], [0, 2, 4]),
    ],
)
def test_which_directions(direction, of_a, of_b):
    gradient = matrix()
    start = lora_ga(Gradient.of(gradient, 10), matrix(1), R, 2.0, direction=direction, scale="unit")
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    torch.testing.assert_close((start.a_RD @ v[of_a].t()).abs(), torch.eye(R), rtol=0, atol=1e-4)
    torch.testing.assert_close((start.b_OR.t() @ u[:, of_b]).abs(), torch.eye(R), rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", SCALES)
def test_the_scale_is_of_the_weight_and_never_of_the_gradient(scale):
    weight, s = matrix(1), 2.0
    large = Gradient.of(matrix() * 1e4, 10)
    small = Gradient.of(matrix() * 1e-4, 10)
    one, other = (lora_ga(g, weight, R, s, scale=scale) for g in (large, small))
    torch.testing.assert_close(one.a_RD, other.a_RD, rtol=1e-4, atol=1e-4)
    roots = (torch.linalg.svdvals(weight)[:R] / s).sqrt()
    wanted = {"stable": 20**0.25 / 4, "weight_svd": roots.mean(), "gd_scale": 0.5, "unit": 1.0}
    for rows in (one.a_RD, one.b_OR.t()):
        torch.testing.assert_close(rows.norm(dim=1), torch.full((R,), float(wanted[scale])))
    assert torch.equal(one.base_change[0], one.a_RD)


@given(st.sampled_from(DIRECTIONS), st.integers(2, 16), st.integers(2, 16), st.data())
def test_shapes_wide_and_tall(direction, num_out, num_in, data):
    r = data.draw(st.integers(1, min(num_out, num_in) // 2))
    gradient = Gradient.of(matrix(0, (num_out, num_in)), 2 * r)
    start = lora_ga(gradient, matrix(1, (num_out, num_in)), r, 1.0, direction=direction)
    assert (start.a_RD.shape, start.b_OR.shape) == ((r, num_in), (num_out, r))
    for a, b in (start.base_change, (start.a_RD, start.b_OR)):
        assert a.is_contiguous()
        assert b.is_contiguous()


def test_its_first_step_comes_nearer_to_the_gradient_than_that_of_any_other():
    """Theorem 3.1: BBᵀG + GAᵀA has the largest overlap with G for these directions."""
    gradient = matrix()

    def overlap(a, b):
        step = b @ b.t() @ gradient + gradient @ a.t() @ a
        return (step * gradient).sum().item()

    start = lora_ga(Gradient.of(gradient, 10), matrix(1), R, 1.0, scale="unit")
    best = overlap(start.a_RD, start.b_OR)
    for seed in range(20):
        a = torch.linalg.qr(matrix(seed, (14, R))).Q.t()
        b = torch.linalg.qr(matrix(seed + 99, (20, R))).Q
        assert overlap(a, b) < best


def test_gradients_of_batches_add_up():
    total = Gradient.of(matrix(0), 10).plus(matrix(1))
    exact = torch.linalg.svd(matrix(0) + matrix(1), full_matrices=False)
    assert torch.linalg.svdvals(total.v_QD[:4] @ exact.Vh[:4].t()).min() > 0.9
    whole = Gradient.of(matrix(0), 14).plus(matrix(1))
    torch.testing.assert_close(whole.s_Q, exact.S, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("gradient", "weight", "r", "text"),
    [
        (matrix(), matrix(), 8, "16 directions"),
        (matrix(), matrix() * float("inf"), R, "not finite"),
        (torch.zeros(20, 14), matrix(), R, "0 directions"),
        (matrix()[:, :4], matrix(), R, "4 directions"),
    ],
)
def test_what_gives_no_start(gradient, weight, r, text):
    with pytest.raises(AdapterError, match=text):
        lora_ga(Gradient.of(gradient, 10), weight, r, 1.0)
