"""Kinds of adapted modules around one another, in their order."""

from torch import nn

from ince.lora.layers.biases import OwnBias
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.saved_module import SavedModule
from ince.lora.layers.spec import AdapterSpec
from ince.lora.layers.state import AdapterState
from ince.lora.layers.token_rows import TokenRows
from ince.lora.layers.wrapper import innermost, part_of, put_innermost


def kinds(adapted):
    return [type(each) for each in adapted.chain()]


def test_each_kind_finds_its_place_whatever_comes_first():
    state, base = AdapterState(), nn.Linear(4, 4)
    outer = TokenRows.around(base, state)
    outer = SavedModule.around(outer, state)
    outer = OwnBias.around(outer, state)
    outer = put_innermost(outer, LoraLayer(base, state))
    assert kinds(outer) == [SavedModule, TokenRows, OwnBias, LoraLayer]
    assert outer.get_base_layer() is base
    assert type(innermost(outer)) is LoraLayer
    assert TokenRows.around(outer, state) is outer
    assert part_of(outer, OwnBias).base_layer is part_of(outer, LoraLayer)


def test_what_is_empty_is_unwrapped():
    state, base = AdapterState(), nn.Linear(4, 4)
    outer = SavedModule.around(put_innermost(base, LoraLayer(base, state)), state)
    outer = OwnBias.around(outer, state)
    part_of(outer, SavedModule).add_adapter("a")
    part_of(outer, OwnBias).add_adapter("b")
    part_of(outer, LoraLayer).add_adapter("b", AdapterSpec(1, 1, 1.0))
    assert outer.adapter_names() == ("b", "a")
    assert set(outer.tensors("b")) == {"lora_A.weight", "lora_B.weight", "base_layer.bias"}
    outer.delete_adapter("b")
    assert kinds(outer) == [SavedModule]
    assert outer.base_layer is base


def test_sizes_are_the_bases():
    outer = SavedModule.around(OwnBias.around(nn.Linear(4, 3), AdapterState()), AdapterState())
    assert (outer.in_features, outer.out_features) == (4, 3)
    assert not hasattr(outer, "nothing")
