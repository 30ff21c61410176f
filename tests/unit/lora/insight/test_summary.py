import json

import pytest

from ince.lora.insight import compare_adapters, inspect_adapter
from ince.lora.insight.summary import extremes, summarize_layers, summarize_pairs

NAMES = [f"model.layers.{n}.{kind}" for n in range(3) for kind in ("down_proj", "q_proj")]


@pytest.fixture
def insight(make_adapter, made_factors):
    tensors = made_factors(NAMES)
    tensors["base_model.model.model.layers.2.q_proj.lora_B.weight"] *= 10
    return inspect_adapter(make_adapter(tensors))


def test_a_line_for_each_kind_and_one_for_all(insight):
    lines = summarize_layers(insight.layers)
    assert [line.kind for line in lines] == ["q_proj", "down_proj", "all"]
    assert [line.num_layers for line in lines] == [3, 3, 6]
    assert lines[-1].num_parameters == insight.num_parameters
    norms = [layer.frobenius_norm for layer in insight.layers if layer.kind == "q_proj"]
    assert lines[0].update_norm == pytest.approx(sum(norms) / 3)
    assert lines[0].relative_norm is None
    assert json.loads(json.dumps(lines[0].to_dict()))["kind"] == "q_proj"


def test_one_kind_needs_no_line_for_all(insight):
    (line,) = summarize_layers([layer for layer in insight.layers if layer.kind == "q_proj"])
    assert line.kind == "q_proj"
    assert summarize_layers([]) == []


def test_the_layers_that_stand_out(insight):
    found = dict(extremes(insight.layers))
    assert found["changes most"].name == "model.layers.2.q_proj"
    spreads = [layer.stable_rank for layer in insight.layers]
    assert found["spread most"].stable_rank == max(spreads)
    assert found["spread least"].stable_rank == min(spreads)
    assert extremes(insight.layers[:1]) == []


def test_shared_directions_by_kind(insight):
    comparison = compare_adapters(insight, insight)
    lines = summarize_pairs(comparison.pairs)
    assert [line.kind for line in lines] == ["q_proj", "down_proj", "all"]
    for line in lines:
        assert line.cosine == pytest.approx(1.0)
        assert line.phi_a == pytest.approx((1.0, 1.0))
        assert line.random == pytest.approx((1 / 12, 4 / 12))
