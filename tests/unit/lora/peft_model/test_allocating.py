import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import ince
from ince.errors import AdapterError
from ince.lora import AdaLoraConfig, LoraConfig, PeftModel, VeraConfig, get_peft_model
from ince.lora.allocation.orthogonality import orthogonality
from ince.lora.placement.inject import adapter_tensors
from ince.quant import NF4Config, quantize_model

IDS = torch.tensor([[1, 5, 9, 2], [3, 4, 7, 8]])


def base(*, quantized=False):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = LlamaForCausalLM(config).eval()
    if quantized:
        quantize_model(model, NF4Config(compute_dtype="float32"))
    return model


def config(**values):
    settings = {
        "init_r": 4,
        "target_r": 2,
        "total_step": 4,
        "target_modules": ["q_proj", "down_proj"],
        "init_lora_weights": False,
    }
    return AdaLoraConfig(**(settings | values))


def train(model, num_steps, start=0):
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(start, start + num_steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        model.update_and_allocate(step)
        optimizer.zero_grad()
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_the_loss_of_training_has_the_regularizer_and_that_of_evaluation_has_not():
    model = get_peft_model(base(), config(orth_reg_weight=0.3))
    plain = model.get_base_model()(input_ids=IDS, labels=IDS).loss
    assert model.eval()(input_ids=IDS, labels=IDS).loss == plain
    outputs = model.train()(input_ids=IDS, labels=IDS)
    term = 0.3 * orthogonality(model.get_base_model())
    torch.testing.assert_close(outputs.loss, plain + term)
    assert outputs["loss"] is outputs.loss
    assert model(input_ids=IDS).loss is None
    with torch.no_grad():
        assert model(input_ids=IDS, labels=IDS).loss == plain
    model.set_requires_grad("default", False)
    assert model(input_ids=IDS, labels=IDS).loss == plain


def test_two_adapters_each_have_their_ranks():
    model = get_peft_model(base(), config())
    model.add_adapter("other", config(target_r=1))
    model.set_adapter(["default", "other"])
    train(model, 5)
    left = {
        name: sum(map(sum, model.peft_config[name].rank_pattern.values()))
        for name in ("default", "other")
    }
    assert left == {"default": 8, "other": 4}


def test_weights_that_were_saved_go_back_into_a_model_that_trains(tmp_path):
    model = train(get_peft_model(base(), config()), 5)
    wanted = logits(model)
    model.save_pretrained(tmp_path)
    state = {k: t.clone() for k, t in ince.get_peft_model_state_dict(model).items()}
    train(model, 1, start=9)
    assert not torch.equal(logits(model), wanted)
    model.load_adapter(tmp_path, "default", is_trainable=True)
    torch.testing.assert_close(logits(model), wanted)
    train(model, 1, start=9)
    ince.set_peft_model_state_dict(model, state)
    torch.testing.assert_close(logits(model), wanted)


def test_a_gathered_state_dict_saves_the_same(tmp_path):
    for method in (config(), VeraConfig(r=3, target_modules=["q_proj"], init_weights=False)):
        model = get_peft_model(base(), method)
        state = copy.deepcopy(model.state_dict())
        model.save_pretrained(tmp_path / "a")
        model.save_pretrained(tmp_path / "b", state_dict=state)
        one, two = (PeftModel.from_pretrained(base(), tmp_path / name) for name in "ab")
        assert torch.equal(logits(one), logits(two))


@pytest.mark.parametrize(
    "method",
    [config(), VeraConfig(r=5, target_modules=["q_proj", "down_proj"], init_weights=False)],
)
def test_over_a_base_in_4_bits(tmp_path, method):
    model = get_peft_model(base(quantized=True), method).train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)
    model.eval()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(quantized=True), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    merged = model.merge_and_unload(dtype=torch.float32)
    torch.testing.assert_close(logits(merged), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "method",
    [config(), VeraConfig(r=5, target_modules=["q_proj", "down_proj"], init_weights=False)],
)
def test_many_adapters_in_one_batch(method):
    model = get_peft_model(base(), method)
    model.add_adapter("other", method)
    model.eval()
    rows = []
    for name, row in (("default", 0), ("other", 1)):
        model.set_adapter(name)
        rows.append(logits(model)[row])
    with torch.no_grad():
        mixed = model(input_ids=IDS, adapter_names=["default", "other"]).logits
    torch.testing.assert_close(mixed, torch.stack(rows), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "method",
    [config(), VeraConfig(r=5, target_modules=["q_proj", "down_proj"], init_weights=False)],
)
def test_merging_in_place_and_back(method):
    model = get_peft_model(base(), method).eval()
    before, of_base = logits(model), logits(base())
    model.merge_adapter()
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(logits(model), before)
    with model.disable_adapter():
        assert torch.equal(logits(model), of_base)


def test_a_new_adapter_of_an_old_name_forgets_the_old_one():
    model = get_peft_model(base(), config())
    train(model, 2)
    model.add_adapter("other", config())
    model.delete_adapter("default")
    model.add_adapter("default", config())
    model.set_adapter("default")
    train(model, 5)
    assert sum(map(sum, model.peft_config["default"].rank_pattern.values())) == 8
    assert all(t.isfinite().all() for t in adapter_tensors(model.get_base_model()).values())


def test_an_adapter_that_does_not_train_has_no_step():
    model = get_peft_model(base(), config(inference_mode=True))
    with pytest.raises(AdapterError, match="no AdaLoRA adapter is trained"):
        model.update_and_allocate(0)
    model = get_peft_model(base(), LoraConfig(r=2))
    with pytest.raises(AdapterError, match=r"default \(LORA\)"):
        model.base_model.update_and_allocate(0)
