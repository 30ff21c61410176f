import json

import pytest
import torch

from ince.errors import AdapterError
from ince.lora.insight import compare_adapters, inspect_adapter
from ince.lora.insight.subspace import phi_table

P = "base_model.model."
NAMES = ("model.layers.0.q_proj", "model.layers.1.q_proj", "model.layers.1.o_proj")


@pytest.fixture
def inspected(make_adapter):
    def make(tensors, name="adapter", **config):
        return inspect_adapter(make_adapter(tensors, name, **config))

    return make


def test_an_adapter_beside_itself(inspected, made_factors):
    found = inspected(made_factors(NAMES))
    comparison = compare_adapters(found, found)
    assert comparison.cosine == pytest.approx(1.0)
    for pair in comparison.pairs:
        assert pair.cosine == pytest.approx(1.0)
        for grid in (pair.phi_a, pair.phi_delta):
            assert all(value == pytest.approx(1.0) for row in grid.values for value in row)
    for of in ("a", "delta"):
        mean, num = comparison.mean_phi(of)
        assert (num, mean.full) == (3, pytest.approx(1.0))


def test_phi_and_cosine_are_those_of_the_dense_matrices(inspected, made_factors):
    one, other = made_factors(NAMES), made_factors(NAMES, seed=1, r=6)
    comparison = compare_adapters(inspected(one), inspected(other, "other", r=6, lora_alpha=-3))
    dense = []
    for pair in comparison.pairs:
        (a1, b1), (a2, b2) = (
            [each[f"{P}{pair.name}.lora_{side}.weight"].double() for side in "AB"]
            for each in (one, other)
        )
        delta1, delta2 = 2.0 * b1 @ a1, -0.5 * b2 @ a2
        dense.append((delta1, delta2))
        right = [torch.linalg.svd(m, full_matrices=False)[2] for m in (a1, a2, delta1, delta2)]
        expected = phi_table(right[0].t(), right[1].t())
        assert pair.phi_a.values[1][2] == pytest.approx(float(expected[1, 2]))
        assert pair.phi_a.full == pytest.approx(float(expected[3, 5]))
        expected = phi_table(right[2][:4].t(), right[3][:6].t())
        assert pair.phi_delta.values[1][2] == pytest.approx(float(expected[1, 2]))
        assert pair.phi_delta.random_full == 6 / 12
        cosine = (delta1 * delta2).sum() / delta1.norm() / delta2.norm()
        assert pair.cosine == pytest.approx(float(cosine))
    flat = [torch.cat([pair[n].flatten() for pair in dense]) for n in (0, 1)]
    whole = torch.dot(*flat) / flat[0].norm() / flat[1].norm()
    assert comparison.cosine == pytest.approx(float(whole))


def test_the_opposite_update_spans_the_same_and_points_away(inspected, made_factors):
    tensors = made_factors(NAMES)
    opposite = {name: -t if "lora_B" in name else t for name, t in tensors.items()}
    comparison = compare_adapters(inspected(tensors), inspected(opposite, "other"))
    assert comparison.cosine == pytest.approx(-1.0)
    assert comparison.pairs[0].phi_delta.full == pytest.approx(1.0)


def test_what_they_do_not_share_is_listed(inspected, made_factors):
    one = made_factors(NAMES[:2]) | made_factors(["model.head"], num_out=10)
    other = made_factors(NAMES[1:]) | made_factors(["model.head"], num_out=11)
    first = inspected(one, base_model_name_or_path="a/b")
    second = inspected(other, "other", base_model_name_or_path="c/d")
    comparison = compare_adapters(first, second)
    assert [pair.name for pair in comparison.pairs] == [NAMES[1]]
    assert comparison.only_first == (NAMES[0],)
    assert comparison.only_second == (NAMES[2],)
    assert comparison.other_shape == ("model.head",)
    assert comparison.bases == ("a/b", "c/d")
    read = json.loads(json.dumps(comparison.to_dict()))
    assert read["mean_phi_delta"]["num_layers"] == 1


def test_an_update_of_zero_has_no_directions(inspected, made_factors):
    tensors = made_factors(NAMES)
    zero = {name: t * 0 if "lora_B" in name else t for name, t in tensors.items()}
    comparison = compare_adapters(inspected(tensors), inspected(zero, "other"))
    assert comparison.cosine is None
    assert comparison.pairs[0].phi_delta is None
    assert comparison.pairs[0].phi_a.full == pytest.approx(1.0)
    assert comparison.mean_phi("delta") is None


def test_adapters_that_share_nothing(inspected, made_factors):
    first = inspected(made_factors(NAMES))
    with pytest.raises(AdapterError, match="no layer in common"):
        compare_adapters(first, inspected(made_factors(["h.0.c_attn"]), "other"))
    with pytest.raises(AdapterError, match="bases of other shapes") as caught:
        compare_adapters(first, inspected(made_factors(NAMES, num_in=13), "wide"))
    assert NAMES[0] in str(caught.value)
