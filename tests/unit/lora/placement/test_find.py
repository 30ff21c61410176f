"""All that a config puts into a model at once, and files that do not fit it."""

import pytest
import torch

from ince.errors import AdapterError
from ince.lora import LoraConfig, PeftModel, adapter_tensors, get_peft_model, inject
from ince.lora.placement.inject import inject_tensors
from ince.lora.placement.places import LayerPlace

IDS = torch.tensor([[1, 5, 9, 2], [3, 3, 0, 11]])
EVERYTHING = {
    "target_modules": ["q_proj"],
    "target_parameters": ["experts.down_proj"],
    "modules_to_save": ["lm_head", "norm"],
    "trainable_token_indices": [3, 9],
    "r": 2,
}


@pytest.fixture
def moe():
    from transformers import MixtralConfig, MixtralForCausalLM

    def make():
        torch.manual_seed(0)
        settings = MixtralConfig(
            vocab_size=48,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=4,
            num_experts_per_tok=2,
        )
        return MixtralForCausalLM(settings).eval()

    return make


def changed(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.1
    return model


def logits(model, **values):
    with torch.no_grad():
        return model(input_ids=IDS, **values).logits


def test_everything_at_once(moe, tmp_path):
    model = changed(get_peft_model(moe(), LoraConfig(init_lora_weights=False, **EVERYTHING)))
    y, plain = logits(model), logits(moe())
    assert not y.allclose(plain, atol=1e-3)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(moe(), tmp_path)
    assert logits(again).equal(y)
    torch.testing.assert_close(logits(again.merge_and_unload()), y)
    with again.disable_adapter():
        assert logits(again).equal(plain)
    again.add_adapter("plain", LoraConfig(target_modules=["v_proj"], init_lora_weights=False))
    mixed = logits(again, adapter_names=["default", "__base__"])
    torch.testing.assert_close(mixed, torch.stack([y[0], plain[1]]))
    mixed = logits(again, adapter_names=["plain", "default"])
    torch.testing.assert_close(mixed[1], y[1])
    again.delete_adapter("default")
    again.delete_adapter("plain")
    assert logits(again).equal(plain)
    assert {name for name, _ in again.get_base_model().named_modules()} == {
        name for name, _ in moe().named_modules()
    }


def test_a_forward_that_raises_leaves_the_routing_undone(moe):
    model = changed(get_peft_model(moe(), LoraConfig(**EVERYTHING)))
    y = logits(model)
    with pytest.raises(IndexError):
        model(input_ids=IDS + 100, adapter_names=["default", "__base__"])
    assert logits(model).equal(y)


def tensors_of(make, **values):
    model = make()
    inject(model, LoraConfig(**values))
    return {name: tensor.clone() for name, tensor in adapter_tensors(model).items()}


@pytest.mark.parametrize(
    "end",
    [
        "lm_head.weight",
        "model.norm.weight",
        "embed_tokens.token_adapter.trainable_tokens_delta",
        "layers.0.mlp.experts.lora_A.weight",
    ],
)
def test_files_that_do_not_fit(moe, end):
    config = LoraConfig(**EVERYTHING)
    given = tensors_of(moe, **EVERYTHING)
    (key,) = (name for name in given if name.endswith(end))
    missing = {name: tensor for name, tensor in given.items() if name != key}
    misshaped = {**given, key: torch.zeros(*(size + 1 for size in given[key].shape))}
    surplus = {**given, f"{key}s": given[key]}
    for tensors, message in ((missing, "missing"), (misshaped, "shape"), (surplus, "no place")):
        model = moe()
        names = [name for name, _ in model.named_modules()]
        with pytest.raises(AdapterError, match=message):
            inject_tensors(model, config, tensors)
        assert [name for name, _ in model.named_modules()] == names


def test_a_failure_on_the_way_takes_everything_back(moe, monkeypatch):
    model, plain = moe(), logits(moe())
    places = []

    def failing(self, *_):
        places.append(self.name)
        raise MemoryError

    monkeypatch.setattr(LayerPlace, "add", failing)
    with pytest.raises(MemoryError):
        inject(model, LoraConfig(**EVERYTHING))
    assert places
    assert logits(model).equal(plain)
    assert {name for name, _ in model.named_modules()} == {n for n, _ in moe().named_modules()}
