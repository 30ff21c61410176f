import pytest
import torch

from ince.errors import AdapterError, TrainingError
from ince.lora import LoraConfig, inject
from ince.lora.allocation.allocator import RankAllocator
from ince.lora.placement.inject import adapter_tensors, inject_tensors, lora_layers
from ince.lora.variants import ADALORA


def values(model):
    return {
        name: ADALORA.parts(layer, "default")[1].flatten().tolist()
        for name, layer in lora_layers(model)
    }


def left(config):
    return sum(sum(mask) for mask in config.rank_pattern.values())


def test_the_budget_is_met_to_the_rank(make, descend):
    model, config = make(tinit=1)
    allocator = RankAllocator(model, config)
    counts = []
    for step in range(7):
        descend(model, step)
        config = allocator.update_and_allocate(step)
        counts.append(None if config.rank_pattern is None else left(config))
        if step > 1:
            for name, numbers in values(model).items():
                mask = config.rank_pattern[f"{name}.lora_E"]
                assert [number != 0 for number in numbers] == list(mask)
    assert counts == [None, None, 3, 2, 2, 2, 2]


def test_nothing_is_chosen_before_its_time_and_nothing_after(make, descend):
    model, config = make(tinit=2)
    allocator = RankAllocator(model, config)
    for step in range(3):
        descend(model, step)
        assert allocator.update_and_allocate(step) is config
    for step in (3, 4):
        descend(model, step)
        last = allocator.update_and_allocate(step)
    descend(model, 9)
    assert allocator.update_and_allocate(5) is last
    for numbers, mask in zip(values(model).values(), last.rank_pattern.values(), strict=True):
        assert [number != 0 for number in numbers] == list(mask)


def test_ranks_that_are_worth_nothing_go_in_order_and_no_more_than_asked(make):
    model, config = make()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    allocator = RankAllocator(model, config)
    for step in range(5):
        config = allocator.update_and_allocate(step)
    assert list(config.rank_pattern.values()) == [(True, True, False, False), (False,) * 4]


def test_as_many_ranks_as_at_the_start_keep_all(make, descend):
    model, config = make(target_r=4)
    allocator = RankAllocator(model, config)
    for step in range(6):
        descend(model, step)
        config = allocator.update_and_allocate(step)
    assert left(config) == 8


def test_a_loaded_adapter_goes_on_with_what_is_left(make, descend):
    model, config = make(target_r=2)
    allocator = RankAllocator(model, config)
    for step in range(5):
        descend(model, step)
        config = allocator.update_and_allocate(step)
    from ince.lora.allocation.files import to_file

    saved, tensors = to_file(model, "default", config, adapter_tensors(model))
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    fresh, _ = make()
    from ince.lora.placement.inject import restore_base

    restore_base(fresh)
    again = inject_tensors(fresh, saved.model_copy(update={"target_r": 1}), tensors)
    allocator = RankAllocator(fresh, again)
    for step in range(5):
        descend(fresh, step + 50)
        again = allocator.update_and_allocate(step)
    assert left(again) == 2
    for name, mask in again.rank_pattern.items():
        assert len(mask) == 4
        assert all(old or not new for old, new in zip(saved.rank_pattern[name], mask, strict=True))
    final, small = to_file(fresh, "default", again, adapter_tensors(fresh))
    assert final.rank_pattern == again.rank_pattern
    assert sum(t.shape[0] for name, t in small.items() if name.endswith("lora_E")) == 2


def test_a_step_without_gradients_says_when_to_call(make):
    model, config = make()
    with pytest.raises(TrainingError, match="after backward"):
        RankAllocator(model, config).update_and_allocate(0)


def test_other_adapters_are_refused(make):
    model, config = make()
    with pytest.raises(AdapterError, match="not an AdaLoRA adapter"):
        RankAllocator(model, config, "other")
    plain = torch.nn.Sequential(torch.nn.Linear(3, 3))
    resolved = inject(plain, LoraConfig(r=2, target_modules=["0"]))
    with pytest.raises(AdapterError, match="not an AdaLoRA adapter"):
        RankAllocator(plain, resolved)
