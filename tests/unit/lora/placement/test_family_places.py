import torch
from torch import nn

from ince.lora import LoraConfig, VeraConfig, inject
from ince.lora.placement.inject import (
    adapter_tensors,
    delete_adapter,
    find_places,
    inject_tensors,
    state_of,
)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.Linear(9, 4)
        self.tall = nn.Linear(4, 12)

    def forward(self, x):
        return self.tall(self.wide(x))


def config(**values):
    return VeraConfig(**({"r": 3, "target_modules": ["wide", "tall"]} | values))


def test_the_shared_matrices_are_as_wide_as_the_widest_layer():
    places, _ = find_places(Two(), config())
    shapes = {name: shape for place in places for name, shape in place.shapes().items()}
    assert shapes == {
        "base_model.vera_A": (3, 9),
        "base_model.vera_B": (12, 3),
        "base_model.model.wide.vera_lambda_b": (4,),
        "base_model.model.wide.vera_lambda_d": (3,),
        "base_model.model.tall.vera_lambda_b": (12,),
        "base_model.model.tall.vera_lambda_d": (3,),
    }


def test_all_layers_share_one_pair_and_lose_it_with_the_adapter():
    model = Two()
    inject(model, config(), "one")
    inject(model, config(projection_prng_key=4, r=5), "two")
    shared = state_of(model).shared
    assert set(shared) == {"one", "two"}
    assert model.wide.factors("one").a_RD.data_ptr() == model.tall.factors("one").a_RD.data_ptr()
    delete_adapter(model, "one")
    assert set(state_of(model).shared) == {"two"}
    assert model(torch.randn(2, 9)).shape == (2, 12)
    delete_adapter(model, "two")
    assert isinstance(model.wide, nn.Linear)


def test_matrices_of_a_file_take_the_place_of_drawn_ones():
    model = Two()
    made = config(init_weights=False)
    inject(model, made)
    tensors = {name: torch.randn(t.shape) for name, t in adapter_tensors(model).items()}
    other = Two()
    inject_tensors(other, made, tensors)
    assert torch.equal(other.tall.factors("default").a_RD, tensors["base_model.vera_A"][:, :4])
    again = adapter_tensors(other)
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_lora_keeps_places_of_its_own():
    places, _ = find_places(Two(), LoraConfig(r=2, target_modules=["wide"]))
    assert [sorted(place.shapes()) for place in places] == [
        ["base_model.model.wide.lora_A.weight", "base_model.model.wide.lora_B.weight"]
    ]
