"""Every way in which a layer's adapters may change is noticed; what does not concern us is not."""

import pytest
import torch
from torch import nn

from ince.lora.layers.spec import AdapterSpec
from ince.lora.mixed.watch import Watch


def in_place(layer):
    layer.lora_A["a0"].weight.mul_(2)


def loaded(layer):
    state = {name: tensor + 1 for name, tensor in layer.state_dict().items()}
    layer.load_state_dict(state)


def assigned(layer):
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)


def through_data(layer):
    layer.lora_B["a0"].weight.data.mul_(2)


def other_memory(layer):
    layer.lora_A["a0"].weight.data = torch.ones(4, 12)


def other_parameter(layer):
    layer.lora_A["a0"].weight = nn.Parameter(torch.ones(4, 12), requires_grad=False)


def other_module(layer):
    layer.lora_A["a0"] = nn.Linear(12, 4, bias=False).requires_grad_(False)


def other_scale(layer):
    layer.specs["a0"] = AdapterSpec(r=4, alpha=8, scaling=3.0)


def deleted(layer):
    layer.delete_adapter("a0")


def started(layer):
    layer.set_start("a0", torch.ones(4, 12), torch.ones(10, 4))


def other_type(layer):
    layer.double()


def in_inference_mode(layer):
    with torch.inference_mode():
        layer.lora_A["a0"].weight.mul_(2)


def base_by_magnitude(layer):
    layer.base_layer.weight.mul_(2)


def other_base(layer):
    layer.base_layer = nn.Linear(12, 10)


CHANGES = (
    in_place,
    loaded,
    assigned,
    through_data,
    other_memory,
    other_parameter,
    other_module,
    other_scale,
    deleted,
    started,
    other_type,
    in_inference_mode,
    base_by_magnitude,
    other_base,
)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(make_layer, change):
    layer = make_layer()
    with torch.no_grad():
        watch = Watch(layer, ("a0", "a1"), with_base=True)
        assert watch.is_same(in_same_call=False)
        change(layer)
        assert not watch.is_same(in_same_call=False)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False}])
def test_every_optimizer_is_noticed(make_layer, optimizer, options):
    layer = make_layer()
    parameters = [layer.lora_A["a1"].weight, layer.lora_B["a1"].weight]
    watch = Watch(layer, ("a0", "a1"), with_base=False)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer(parameters, lr=0.1, **options).step()
    assert not watch.is_same(in_same_call=False)


def test_a_second_start_table_entry_is_noticed(make_layer):
    layer = make_layer()
    layer.set_start("a1", torch.ones(4, 12), torch.ones(10, 4))
    watch = Watch(layer, ("a0",), with_base=False)
    layer.set_start("a0", torch.ones(4, 12), torch.ones(10, 4))
    assert not watch.is_same(in_same_call=True)


def test_other_adapters_and_the_base_do_not_concern_it(make_layer):
    layer = make_layer()
    watch = Watch(layer, ("a0",), with_base=False)
    with torch.no_grad():
        layer.lora_A["a1"].weight.mul_(2)
        layer.delete_adapter("a2")
        layer.base_layer.weight.mul_(2)
    assert watch.is_same(in_same_call=False)


def test_memory_that_was_given_back_does_not_come_again(make_layer):
    layer = make_layer()
    parameter = layer.lora_A["a0"].weight
    watch = Watch(layer, ("a0",), with_base=False)
    address = parameter.data_ptr()
    for _ in range(20):
        parameter.data = torch.zeros(1)
        parameter.data = torch.ones(4, 12)
        assert parameter.data_ptr() != address
        assert not watch.is_same(in_same_call=True)


def test_tensors_of_inference_mode_cannot_be_watched(make_layer):
    layer = make_layer()
    with torch.inference_mode():
        layer.lora_A["a0"].weight = nn.Parameter(torch.ones(4, 12), requires_grad=False)
    assert not Watch(layer, ("a0",), with_base=False).is_possible
    assert Watch(layer, ("a1",), with_base=False).is_possible


def test_whether_something_trains_is_asked_anew(make_layer):
    layer = make_layer()
    watch = Watch(layer, ("a0",), with_base=False)
    assert not watch.requires_grad
    layer.lora_B["a0"].weight.requires_grad_()
    assert watch.requires_grad
