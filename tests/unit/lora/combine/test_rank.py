"""A lower rank loses the tail of the spectrum, and ranks are chosen by it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ince.errors import AdapterError, ConfigError
from ince.lora.combine.rank import plan_ranks, rank_for_energy, reduce_rank
from ince.lora.combine.spectrum import singular_values

SIZES = st.integers(1, 9)


def pair(r=6, d=20, o=15, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(r, d, generator=generator), torch.randn(o, r, generator=generator)


@given(r=SIZES, d=SIZES, o=SIZES, seed=st.integers(0, 9), data=st.data())
def test_the_error_is_the_tail_of_the_spectrum(r, d, o, seed, data):
    a, b = pair(r, d, o, seed)
    lower = data.draw(st.integers(1, min(r, d, o)))
    reduced = reduce_rank(a, b, lower)
    assert reduced.a_RD.shape == (lower, d)
    assert reduced.b_OR.shape == (o, lower)
    wanted = b.double() @ a.double()
    spectrum = torch.linalg.svdvals(wanted)
    error = (wanted - reduced.b_OR.double() @ reduced.a_RD.double()).norm()
    tail = float(spectrum[lower:].norm())
    assert reduced.error == pytest.approx(tail, rel=1e-6, abs=1e-9)
    assert float(error) == pytest.approx(tail, rel=1e-4, abs=1e-5)
    share = float(spectrum[:lower].square().sum() / spectrum.square().sum())
    assert reduced.kept_energy == pytest.approx(share, abs=1e-9)


@given(r=st.integers(1, 6), seed=st.integers(0, 9), split=st.sampled_from(["balanced", "peft"]))
def test_reducing_again_changes_nothing(r, seed, split):
    once = reduce_rank(*pair(seed=seed), r, split=split)
    twice = reduce_rank(once.a_RD, once.b_OR, r, split=split)
    torch.testing.assert_close(twice.b_OR @ twice.a_RD, once.b_OR @ once.a_RD, rtol=1e-5, atol=1e-5)
    assert twice.kept_energy == pytest.approx(1.0)
    assert twice.error == pytest.approx(0.0, abs=1e-6)


def test_no_other_pair_of_that_rank_is_nearer():
    a, b = pair()
    reduced = reduce_rank(a, b, 2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        near_a = reduced.a_RD + 0.05 * torch.randn(reduced.a_RD.shape, generator=generator)
        near_b = reduced.b_OR + 0.05 * torch.randn(reduced.b_OR.shape, generator=generator)
        assert float((b @ a - near_b @ near_a).norm()) > reduced.error


def test_the_two_splits_share_a_product():
    a, b = pair()
    balanced, peft = reduce_rank(a, b, 3), reduce_rank(a, b, 3, split="peft")
    torch.testing.assert_close(
        balanced.b_OR @ balanced.a_RD, peft.b_OR @ peft.a_RD, rtol=1e-5, atol=1e-4
    )
    sigma = singular_values(a, b)[:3]
    torch.testing.assert_close(balanced.a_RD.norm(dim=1), sigma.sqrt())
    torch.testing.assert_close(balanced.b_OR.norm(dim=0), sigma.sqrt())
    torch.testing.assert_close(peft.a_RD.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(peft.b_OR.norm(dim=0), sigma)


def test_an_update_of_zero_loses_nothing():
    a, b = pair()
    reduced = reduce_rank(a, 0 * b, 1)
    assert (reduced.kept_energy, reduced.error) == (1.0, 0.0)
    assert not (reduced.b_OR @ reduced.a_RD).any()


@pytest.mark.parametrize("r", [0, -1, 7, 2.0, True, None])
def test_ranks_out_of_range(r):
    with pytest.raises(AdapterError, match="no such lower rank") as caught:
        reduce_rank(*pair(), r)
    assert caught.value.expected == "1 to 6"


def test_hostile_factors():
    a, b = pair()
    with pytest.raises(AdapterError, match="disagree"):
        reduce_rank(a, b.mT, 2)
    with pytest.raises(AdapterError, match="NaN"):
        reduce_rank(a * math.nan, b, 2)
    with pytest.raises(ConfigError, match="split"):
        reduce_rank(a, b, 2, split="even")


@pytest.mark.parametrize(
    ("share", "rank"), [(0.01, 1), (0.639, 1), (0.641, 2), (0.989, 2), (0.991, 3), (1.0, 3)]
)
def test_the_rank_that_an_energy_needs(share, rank):
    # Energies 64, 35 and 1 of 100.
    spectrum = torch.tensor([8.0, 35**0.5, 1.0, 0.0, 1e-8])
    assert rank_for_energy(spectrum, share) == rank
    assert rank_for_energy(spectrum.flip(0), share) == rank
    assert rank_for_energy(spectrum * 1e-30, share) == rank


@given(st.lists(st.floats(0, 1e3, width=32), min_size=1, max_size=8), st.floats(0.01, 1))
def test_it_is_the_least_that_suffices(values, share):
    spectrum = torch.tensor(values)
    rank = rank_for_energy(spectrum, share)
    energy = spectrum.double().sort(descending=True).values.square()
    assert 1 <= rank <= len(values)
    slack = 1e-9 * float(energy.sum())
    assert float(energy[:rank].sum()) >= share * float(energy.sum()) - slack
    if rank > 1:
        assert float(energy[: rank - 1].sum()) <= share * float(energy.sum()) + slack


def test_reducing_to_the_planned_rank_keeps_the_energy():
    a, b = pair()
    for share in (0.5, 0.9, 0.99):
        r = rank_for_energy(singular_values(a, b), share)
        assert reduce_rank(a, b, r).kept_energy >= share - 1e-6


def test_a_plan_over_layers():
    spectra = {
        "flat": torch.ones(8),
        "steep": torch.tensor([10.0, 0.1, 0.1]),
        "unused": torch.zeros(4),
    }
    assert plan_ranks(spectra, rank=4) == {"flat": 4, "steep": 3, "unused": 4}
    assert plan_ranks(spectra, energy=0.9) == {"flat": 8, "steep": 1, "unused": 1}
    assert plan_ranks(spectra, energy=0.5) == {"flat": 4, "steep": 1, "unused": 1}
    assert plan_ranks(spectra, rank=3, energy=0.9) == {"flat": 3, "steep": 1, "unused": 1}


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, math.nan])
def test_no_share(share):
    with pytest.raises(ConfigError, match="share"):
        rank_for_energy(torch.ones(3), share)
    with pytest.raises(ConfigError, match="share"):
        plan_ranks({"x": torch.ones(3)}, energy=share)


@pytest.mark.parametrize(
    "spectrum",
    [torch.ones(0), torch.ones(2, 2), torch.tensor([1.0, math.nan]), torch.tensor([1.0, -1.0])],
)
def test_no_spectrum(spectrum):
    with pytest.raises(AdapterError, match="spectrum"):
        rank_for_energy(spectrum, 0.9)
    with pytest.raises(AdapterError, match="spectrum") as caught:
        plan_ranks({"layers.0": spectrum}, rank=1)
    assert caught.value.where == "layers.0"


def test_no_plan():
    with pytest.raises(ConfigError, match="no rank and no energy"):
        plan_ranks({"x": torch.ones(2)})
    with pytest.raises(ConfigError, match="no such rank"):
        plan_ranks({"x": torch.ones(2)}, rank=0)
    with pytest.raises(AdapterError, match="no layers"):
        plan_ranks({}, rank=1)
