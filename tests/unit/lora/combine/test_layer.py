"""What each combination must do, whatever the adapters are."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ince.errors import AdapterError
from ince.lora.combine.check import KINDS, Combination
from ince.lora.combine.layer import combine_layer
from ince.lora.combine.part import Part

ON_FACTORS = [name for name, kind in KINDS.items() if kind.on == "factors"]
DENSE = [name for name, kind in KINDS.items() if kind.on == "delta"]
CERTAIN = [name for name, kind in KINDS.items() if kind.pruning != "random"]
SCALES = st.sampled_from([2.0, 1.0, 0.5, -0.5, -1.0, 0.25])


def make(seed, r, d, o, s=1.0, weight=1.0):
    """Entries are multiples of a quarter: sums of some of them are exact in any order."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randint(-8, 9, shape, generator=generator) / 4

    return Part(draw(r, d), draw(o, r), s, weight, f"adapter {seed}")


@st.composite
def mixes(draw, equal_ranks=False, max_parts=4):
    d, o, r = draw(st.integers(1, 8)), draw(st.integers(1, 8)), draw(st.integers(1, 5))
    ranks = st.just(r) if equal_ranks else st.integers(1, 5)
    return [
        make(draw(st.integers(0, 99)), draw(ranks), d, o, draw(SCALES), draw(SCALES))
        for _ in range(draw(st.integers(1, max_parts)))
    ]


def total(parts):
    return sum(part.weight * part.delta() for part in parts)


def product(pair):
    a, b = pair
    return b @ a


def combine(kind, parts, rank=None, density=0.5, **options):
    if rank is None:
        ranks = [part.rank for part in parts]
        rank = sum(ranks) if KINDS[kind].on == "rank" else max(ranks)
    extra = {name: options.pop(name) for name in ("generator", "transposed") if name in options}
    return combine_layer(Combination(kind, rank, density, **options), parts, **extra)


@given(mixes())
def test_cat_is_the_sum(parts):
    torch.testing.assert_close(product(combine("cat", parts)), total(parts))


@given(mixes())
def test_svd_of_enough_rank_is_the_sum(parts):
    rank = sum(part.rank for part in parts)
    a, b = combine("svd", parts, rank)
    assert a.shape[0] == b.shape[1] == rank
    torch.testing.assert_close(b @ a, total(parts), rtol=1e-5, atol=1e-5)


@given(mixes(), st.integers(1, 6))
def test_svd_loses_the_tail_and_no_more(parts, rank):
    wanted = total(parts).double()
    error = (product(combine("svd", parts, rank)).double() - wanted).norm()
    tail = torch.linalg.svdvals(wanted)[rank:].norm()
    torch.testing.assert_close(error, tail, rtol=1e-4, atol=1e-4)


@given(mixes(max_parts=1), st.sampled_from(list(KINDS)))
def test_one_adapter_unpruned_is_itself_times_its_weight(parts, kind):
    got = product(combine(kind, parts, density=1.0))
    torch.testing.assert_close(got, total(parts), rtol=1e-5, atol=1e-5)


@given(mixes(equal_ranks=True), st.sampled_from(ON_FACTORS), st.integers(0, 9))
def test_signs_of_the_weights_go_to_a_alone(parts, kind, seed):
    flipped = [Part(p.a_RD, p.b_OR, p.s, -p.weight) for p in parts]
    a, b = combine(kind, parts, generator=torch.Generator().manual_seed(seed))
    other_a, other_b = combine(kind, flipped, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(other_a, -a)
    torch.testing.assert_close(other_b, b)


@given(
    mixes(equal_ranks=True),
    st.sampled_from(CERTAIN),
    st.sampled_from(["total", "frequency"]),
    st.randoms(),
)
def test_the_order_of_adapters_does_not_matter(parts, kind, method, random):
    shuffled = list(parts)
    random.shuffle(shuffled)
    # Enough rank, so that no cut falls between two equal singular values.
    rank = 20 if KINDS[kind].on == "delta" else None
    one = combine(kind, parts, rank, majority_sign_method=method)
    two = combine(kind, shuffled, rank, majority_sign_method=method)
    torch.testing.assert_close(product(one), product(two), rtol=1e-5, atol=1e-5)


@given(mixes(equal_ranks=True), st.sampled_from(list(KINDS)))
def test_the_parts_stay_as_they_are(parts, kind):
    before = [(part.a_RD.clone(), part.b_OR.clone()) for part in parts]
    a, b = combine(kind, parts, density=1.0)
    a.fill_(7.0)
    b.fill_(7.0)
    for part, (old_a, old_b) in zip(parts, before, strict=True):
        assert torch.equal(part.a_RD, old_a)
        assert torch.equal(part.b_OR, old_b)


@pytest.mark.parametrize("kind", KINDS)
def test_shape_dtype_and_layout(kind):
    parts = [make(i, 2, 7, 5) for i in range(3)]
    a, b = combine(kind, parts, rank=9, transposed=True)
    assert a.shape == (9, 7)
    assert b.shape == (5, 9)
    assert a.dtype == b.dtype == torch.float32
    assert a.is_contiguous()
    assert b.is_contiguous()
    assert not a.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_and_parameters_go_in(kind):
    part = make(1, 2, 7, 5)
    parts = [
        Part(torch.nn.Parameter(part.a_RD.bfloat16()), torch.nn.Parameter(part.b_OR.half()), 0.5)
    ]
    got = product(combine(kind, parts, density=1.0))
    torch.testing.assert_close(got, 0.5 * part.b_OR @ part.a_RD, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.pruning == "random"])
def test_masks_come_from_the_generator(kind):
    parts = [make(i, 3, 8, 8, 0.5) for i in range(2)]
    first = combine(kind, parts, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(1)
    again = combine(kind, parts)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    other = combine(kind, parts, generator=torch.Generator().manual_seed(2))
    assert not torch.equal(product(first), product(other))


def test_in_transposed_layers_the_masks_are_transposed():
    part = make(4, 3, 6, 6)
    symmetric = Part(part.a_RD, part.a_RD.mT.contiguous(), 1.0)

    def draw(transposed):
        generator = torch.Generator().manual_seed(0)
        kind = "dare_linear_svd"
        return product(combine(kind, [symmetric], 6, transposed=transposed, generator=generator))

    torch.testing.assert_close(draw(transposed=True), draw(transposed=False).mT, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", DENSE)
def test_the_split_is_orthonormal_in_a(kind):
    parts = [make(i, 3, 8, 7) for i in range(2)]
    a, b = combine(kind, parts, rank=2, density=0.9)
    torch.testing.assert_close(a @ a.mT, torch.eye(2))
    gram = b.mT @ b
    torch.testing.assert_close(gram, torch.diag(gram.diag()), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("clamp", [0.8, 0.99, 1.0])
def test_clamping_bounds_both_factors_by_one_quantile(clamp):
    parts = [make(i, 3, 8, 7) for i in range(2)]
    a, b = combine("svd", parts, rank=7, svd_clamp=clamp)
    u, sigma, v = torch.linalg.svd(total(parts), full_matrices=False)
    both = torch.cat([(u * sigma).flatten(), v.flatten()])
    limit = both.quantile(clamp)
    torch.testing.assert_close(torch.cat([a.flatten(), b.flatten()]).max(), limit)
    torch.testing.assert_close(a, v.clamp(-limit, limit))


def test_a_clamp_that_leaves_nothing_is_refused():
    with pytest.raises(AdapterError, match="one number"):
        combine("svd", [make(i, 3, 8, 7) for i in range(2)], svd_clamp=0.01)


def test_weights_of_zero_give_zero():
    parts = [make(i, 2, 5, 4, weight=0.0) for i in range(2)]
    for kind in KINDS:
        assert not product(combine(kind, parts)).any()


@pytest.mark.parametrize("kind", ON_FACTORS)
def test_layers_of_different_rank_cannot_be_added(kind):
    with pytest.raises(AdapterError, match="ranks differ here") as caught:
        combine(kind, [make(1, 2, 5, 4), make(2, 3, 5, 4)])
    assert caught.value.got == "adapter 1: 2, adapter 2: 3"


def test_more_rank_than_was_planned_is_an_error():
    with pytest.raises(AdapterError, match="more rank"):
        combine("cat", [make(1, 2, 5, 4), make(2, 3, 5, 4)], rank=4)


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_parts(kind):
    good = make(1, 2, 5, 4)
    with pytest.raises(AdapterError, match="nothing to combine"):
        combine(kind, [], rank=2)
    with pytest.raises(AdapterError, match="NaN"):
        combine(kind, [good, Part(good.a_RD * math.nan, good.b_OR, 1.0)])
    with pytest.raises(AdapterError, match="different shapes"):
        combine(kind, [good, make(2, 2, 6, 4)])
    with pytest.raises(AdapterError, match="scale"):
        combine(kind, [good, Part(good.a_RD, good.b_OR, math.inf)])
    with pytest.raises(AdapterError, match="not finite"):
        combine(kind, [Part(good.a_RD * 1e38, good.b_OR * 1e38, 1e38, 1e38)], density=1.0)


def test_a_generator_of_another_device():
    class Elsewhere:
        device = torch.device("cuda")

    with pytest.raises(AdapterError, match="another device"):
        combine("dare_linear", [make(1, 2, 5, 4)], generator=Elsewhere())
