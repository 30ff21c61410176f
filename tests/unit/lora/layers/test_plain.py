"""Plain modules out of packed and adapted ones."""

import torch
from torch import nn

from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.plain import plain_copy, plain_tensors
from ince.lora.layers.spec import AdapterSpec
from ince.lora.layers.state import AdapterState
from ince.quant import Linear4bit, NF4Config


def mixed():
    torch.manual_seed(0)
    layer = LoraLayer(nn.Linear(64, 8), AdapterState(active=("a",)))
    layer.add_adapter("a", AdapterSpec(2, 2, 1.0))
    for tensor in layer.tensors("a").values():
        nn.init.normal_(tensor)
    packed = Linear4bit.from_linear(nn.Linear(64, 64), NF4Config(compute_dtype="float32"))
    return nn.Sequential(packed, nn.BatchNorm1d(64).half(), layer)


def test_copies_hold_plain_layers_and_share_nothing():
    model = mixed()
    before = {name: id(p) for name, p in model.named_parameters()}
    copied = plain_copy(model, torch.bfloat16)
    assert [type(m) for m in copied] == [nn.Linear, nn.BatchNorm1d, nn.Linear]
    assert {p.dtype for p in copied.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in copied.parameters())
    assert {name: id(p) for name, p in model.named_parameters()} == before
    torch.testing.assert_close(
        copied[2].weight.float(), model[2].merged_weight(torch.bfloat16).float()
    )


def test_without_a_dtype_16_bits_become_32_and_others_stay():
    model = nn.Sequential(nn.Linear(2, 2).bfloat16(), nn.Linear(2, 2).double())
    copied = plain_copy(model, None)
    assert [m.weight.dtype for m in copied] == [torch.float32, torch.float64]


def test_tensors_are_those_of_the_copy():
    model = mixed()
    copied = plain_copy(model, torch.float32)
    tensors = {t.name: t for t in plain_tensors("x.", model, torch.float32)}
    state = copied.state_dict()
    assert set(tensors) == {f"x.{name}" for name in state}
    for name, wanted in state.items():
        tensor = tensors[f"x.{name}"]
        assert tensor.shape == tuple(wanted.shape)
        if "running" not in name:
            assert tensor.compute().equal(wanted)


def test_an_adapted_root_is_one_module():
    layer = mixed()[2]
    assert [t.name for t in plain_tensors("", layer, torch.float32)] == ["weight", "bias"]
    assert type(plain_copy(layer, torch.float32)) is nn.Linear
