import torch

from ince.lora.allocation.allocator import RankAllocator
from ince.lora.allocation.files import from_file, to_file
from ince.lora.placement.inject import adapter_tensors, load_adapter_tensors, lora_layers
from ince.lora.variants import ADALORA


def allocated(make, descend, num_steps=5, **values):
    model, config = make(**values)
    allocator = RankAllocator(model, config)
    for step in range(num_steps):
        descend(model, step)
        config = allocator.update_and_allocate(step)
    return model, config


def test_a_file_has_the_ranks_that_are_left(make, descend):
    model, config = allocated(make, descend)
    saved, tensors = to_file(model, "default", config, adapter_tensors(model))
    assert saved is config
    for name, layer in lora_layers(model):
        rank = sum(config.rank_pattern[f"{name}.lora_E"])
        stem = f"base_model.model.{name}."
        shapes = [tensors[f"{stem}lora_{part}"].shape for part in "AEB"]
        geometry = layer.geometry
        assert shapes == [(rank, geometry.in_features), (rank, 1), (geometry.out_features, rank)]
        a, e, b = (tensors[f"{stem}lora_{part}"] for part in "AEB")
        whole_a, whole_e, whole_b = ADALORA.parts(layer, "default")
        torch.testing.assert_close(b @ (a * e), whole_b @ (whole_a * whole_e))


def test_what_moved_off_zero_since_is_kept(make, descend):
    model, config = allocated(make, descend)
    descend(model, 77)
    live = adapter_tensors(model)
    saved, tensors = to_file(model, "default", config, live)
    assert saved.rank_pattern is None
    assert all(tensors[name] is live[name] for name in live)


def test_back_in_a_model_that_trains_what_was_given_up_is_zero(make, descend):
    model, config = allocated(make, descend)
    saved, tensors = to_file(model, "default", config, adapter_tensors(model))
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    x = torch.randn(4, 6)
    wanted = model(x)
    for seed in range(3):
        descend(model, seed, lr=0.002)
    assert not torch.allclose(model(x), wanted)
    load_adapter_tensors(model, from_file(model, "default", saved, tensors))
    torch.testing.assert_close(model(x), wanted)


def test_what_does_not_fit_is_left_for_the_check_of_shapes(make, descend):
    model, config = allocated(make, descend)
    _, tensors = to_file(model, "default", config, adapter_tensors(model))
    odd = {name: tensor[..., :0] for name, tensor in tensors.items()}
    assert from_file(model, "default", config, odd).keys() == odd.keys()
    assert from_file(model, "default", config, {}) == {}
