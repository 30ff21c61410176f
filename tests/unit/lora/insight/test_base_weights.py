import json

import pytest
import torch
from safetensors.torch import save_file

from ince.errors import CorruptFileError, ModelReferenceError
from ince.lora.insight.base_weights import BaseWeights
from ince.lora.insight.layer_update import LayerUpdate


@pytest.fixture
def make_base(tmp_path):
    def make(tensors, **config):
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config))
        return BaseWeights(tmp_path)

    return make


def update(module, shape, form="linear", **more):
    out, fan_in = shape
    a, b = torch.zeros(2, fan_in), torch.zeros(out, 2)
    return LayerUpdate(more.pop("name", module), module, form, a, b, 1.0, 0, **more)


def stored(base, layer, *, fan_in_fan_out=False):
    return base.stored_weight(layer, fan_in_fan_out=fan_in_fan_out)


def test_a_weight_under_its_name_or_under_an_end_of_it(make_base):
    base = make_base({"h.0.attn.q.weight": torch.ones(5, 6), "out.head.weight": torch.ones(7, 6)})
    for module in ("h.0.attn.q", "transformer.h.0.attn.q"):
        assert base.shape(module) == (5, 6)
        weight, is_swapped = stored(base, update(module, (5, 6)))
        assert (tuple(weight.shape), is_swapped) == ((5, 6), False)
    assert base.shape("head") == (7, 6)
    assert base.shape("model.head") == (7, 6)


def test_another_layer_is_not_taken_for_this_one(make_base):
    base = make_base({"model.layers.0.q.weight": torch.ones(5, 6)})
    assert base.shape("model.layers.1.q") is None
    assert "not in the base's files" in stored(base, update("model.layers.1.q", (5, 6)))


def test_two_that_it_could_be_are_none(make_base):
    base = make_base(
        {"a.layers.0.q.weight": torch.ones(5, 6), "b.layers.0.q.weight": torch.ones(5, 6)}
    )
    assert base.shape("layers.0.q") is None
    assert base.shape("a.layers.0.q") == (5, 6)


def test_weights_stored_the_other_way(make_base):
    base = make_base({"l.0.c.weight": torch.ones(6, 5), "l.0.s.weight": torch.ones(6, 6)})
    assert stored(base, update("l.0.c", (5, 6)))[1] is True
    assert stored(base, update("l.0.s", (6, 6)))[1] is False
    assert stored(base, update("l.0.s", (6, 6)), fan_in_fan_out=True)[1] is True


def test_embeddings_and_convolutions(make_base):
    base = make_base({"e.weight": torch.ones(30, 6), "c.weight": torch.ones(8, 3, 2, 2)})
    assert stored(base, update("e", (6, 30), "embedding"))[1] is True
    weight, is_swapped = stored(base, update("c", (8, 12), "convolution"))
    assert (tuple(weight.shape), is_swapped) == ((8, 12), False)


def test_experts(make_base):
    weight = torch.arange(3 * 5 * 6).float().reshape(3, 5, 6)
    base = make_base({"m.0.experts.down": weight, "m.0.experts.square": torch.ones(3, 4, 4)})
    layer = update("m.0.experts", (5, 6), "expert", expert=1, name="m.0.experts.down[1]")
    found, is_swapped = stored(base, layer)
    assert torch.equal(found, weight[1])
    assert is_swapped is False
    nested = update("m.0.experts", (6, 5), "expert", expert=2, name="m.0.experts.base_layer[2]")
    assert stored(base, nested)[1] is True
    missing = update("m.0.experts", (5, 6), "expert", expert=3, name="m.0.experts.down[3]")
    assert "of 3 experts" in stored(base, missing)
    square = update("m.0.experts", (4, 4), "expert", expert=0, name="m.0.experts.square[0]")
    assert "of shape" in stored(base, square)  # it could be stored either way


def test_weights_that_are_no_plain_floats(make_base):
    base = make_base({"l.0.q.weight": torch.zeros(60, 1, dtype=torch.uint8)})
    assert "stored as U8" in stored(base, update("l.0.q", (10, 12)))
    assert base.tensor("l.0.q.weight") is None


def test_a_weight_of_another_shape(make_base):
    base = make_base({"l.0.q.weight": torch.ones(5, 7)})
    assert "of shape (5, 7)" in stored(base, update("l.0.q", (5, 6)))


@pytest.mark.parametrize(
    "config", [{"tie_word_embeddings": True}, {"text_config": {"tie_word_embeddings": True}}]
)
def test_a_head_that_is_the_table_of_embeddings(make_base, config):
    base = make_base({"model.embed_tokens.weight": torch.ones(30, 6)}, **config)
    assert base.shape("lm_head") == (30, 6)


def test_a_head_that_is_missing(make_base):
    base = make_base({"model.embed_tokens.weight": torch.ones(30, 6)}, tie_word_embeddings=False)
    assert base.shape("lm_head") is None


def test_folders_that_are_no_base(tmp_path):
    with pytest.raises(ModelReferenceError):
        BaseWeights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00\x00")
    with pytest.raises(CorruptFileError):
        BaseWeights(tmp_path)
