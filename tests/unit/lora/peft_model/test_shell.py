"""`PeftModel`: load, save, switch, disable, count, merge; and nothing half-done."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ince.errors import AdapterError, ConfigError
from ince.lora import (
    LoraConfig,
    LoraLayer,
    PeftModel,
    adapter_tensors,
    get_peft_model,
    inject,
    load_adapter_tensors,
    merged_state_dict,
)

IDS = torch.tensor([[1, 5, 9, 2, 7]])


def llama(**values):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        **values,
    )
    return LlamaForCausalLM(config).eval()


def config(**values):
    values = {"r": 2, "target_modules": "all-linear", "init_lora_weights": False} | values
    return LoraConfig(**values)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_only_the_adapter_is_trainable_and_named_as_in_peft():
    model = get_peft_model(llama(), config())
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * 14
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight" in trainable
    assert all("lora_" in name for name in trainable)


def test_the_mode_of_the_base_is_kept():
    assert not get_peft_model(llama(), config()).training
    assert get_peft_model(llama().train(), config()).base_model.model.lm_head.training
    model = get_peft_model(llama(), config(lora_dropout=0.9))
    assert torch.equal(logits(model), logits(model))


def test_forward_generate_and_attributes_pass_through():
    base = llama()
    before = logits(base)
    model = get_peft_model(base, config(init_lora_weights=True))
    assert torch.equal(logits(model), before)
    assert model.config is base.config
    assert model.generate(IDS, max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (1, 8)
    with pytest.raises(AttributeError):
        _ = model.no_such_thing


def test_disabled_the_model_is_its_base_even_after_an_exception():
    base = llama()
    before = logits(base)
    model = get_peft_model(base, config())
    adapted = logits(model)
    assert not torch.equal(adapted, before)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
        with model.disable_adapter():
            pass
        assert torch.equal(logits(model), before)
    with pytest.raises(RuntimeError), model.disable_adapter():
        raise RuntimeError
    assert torch.equal(logits(model), adapted)


def test_saved_and_loaded_the_logits_are_equal(tmp_path):
    model = get_peft_model(llama(), config(rank_pattern={"q_proj": 3}, use_rslora=True))
    model.save_pretrained(tmp_path / "a")
    again = PeftModel.from_pretrained(llama(), tmp_path / "a")
    assert torch.equal(logits(again), logits(model))
    assert not any(p.requires_grad for p in again.parameters())
    trainable = PeftModel.from_pretrained(llama(), tmp_path / "a", is_trainable=True)
    assert any(p.requires_grad for p in trainable.parameters())
    assert again.peft_config["default"].inference_mode
    assert not trainable.peft_config["default"].inference_mode


def test_the_same_adapter_is_saved_to_the_same_bytes(tmp_path):
    for name in "ab":
        torch.manual_seed(1)
        get_peft_model(llama(), config()).save_pretrained(tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_loading_draws_no_random_numbers(tmp_path):
    get_peft_model(llama(), config()).save_pretrained(tmp_path)
    base = llama()
    torch.manual_seed(5)
    PeftModel.from_pretrained(base, tmp_path)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


def test_two_adapters_switch_and_save_beside_each_other(tmp_path):
    model = get_peft_model(llama(), config())
    first = logits(model)
    model.add_adapter("other", config(r=3, target_modules=["q_proj"]))
    assert torch.equal(logits(model), first)
    model.set_adapter("other")
    second = logits(model)
    assert not torch.equal(second, first)
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(trainable) == 4
    assert all(".other." in name for name in trainable)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "other" / "adapter_config.json").is_file()
    again = PeftModel.from_pretrained(llama(), tmp_path)
    again.load_adapter(tmp_path / "other", "beside")
    assert torch.equal(logits(again), first)
    again.set_adapter("beside")
    assert torch.equal(logits(again), second)
    with pytest.raises(AdapterError, match="did you mean 'beside'"):
        again.set_adapter("besides")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a.b", "keys", "_x", "a\n", "ü"])
def test_unusable_names(name):
    base = llama()
    with pytest.raises(AdapterError, match="not a usable adapter name"):
        get_peft_model(base, config(), name)
    assert not any(isinstance(m, LoraLayer) for m in base.modules())


def test_a_second_adaptation_is_refused():
    model = get_peft_model(llama(), config())
    for again in (model, model.get_base_model()):
        with pytest.raises(AdapterError, match="adapted already"):
            get_peft_model(again, config())
    with pytest.raises(AdapterError, match="already"):
        model.add_adapter("default", config())


def test_a_config_that_does_not_fit_leaves_the_model_as_it_was():
    base = llama()
    with pytest.raises(ConfigError):
        get_peft_model(base, config(target_modules=["q_proj", "nope"]))
    assert all(p.requires_grad for p in base.parameters())
    assert not any(isinstance(m, LoraLayer) for m in base.modules())


def test_the_head_can_be_adapted_and_merges_untied():
    base = llama(tie_word_embeddings=True)
    model = get_peft_model(base, config(target_modules=["lm_head"]))
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), logits(model))
    assert not merged.config.tie_word_embeddings
    assert base.config.tie_word_embeddings
    assert not torch.equal(merged.lm_head.weight, merged.model.embed_tokens.weight)
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= dict(merged_state_dict(model)).keys()


def test_merging_gives_a_new_model_and_leaves_the_old():
    model = get_peft_model(llama(attention_bias=True), config())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = logits(model)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), adapted)
    assert type(merged) is LlamaForCausalLM
    assert not any(isinstance(m, LoraLayer) for m in merged.modules())
    assert merged.state_dict().keys() == llama(attention_bias=True).state_dict().keys()
    for parameter in merged.parameters():
        parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(model), adapted)


def test_merging_to_16_bits_keeps_buffers_exact():
    model = get_peft_model(llama(), config())
    merged = model.merge_and_unload(dtype=torch.bfloat16)
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    assert merged.config.dtype == torch.bfloat16
    assert model.config.dtype != torch.bfloat16
    assert merged.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("tied", [True, False])
def test_the_merged_stream_is_the_merged_model(tied):
    model = get_peft_model(llama(tie_word_embeddings=tied), config())
    streamed = dict(merged_state_dict(model))
    wanted = dict(model.merge_and_unload(dtype=torch.bfloat16).named_parameters())
    assert streamed.keys() == wanted.keys()
    assert all(torch.equal(streamed[name], wanted[name]) for name in wanted)


def test_a_run_continues_from_tensors():
    model = get_peft_model(llama(), config())
    other = get_peft_model(llama(), config())
    wanted = {k: v + 1 for k, v in adapter_tensors(model.get_base_model()).items()}
    load_adapter_tensors(other.get_base_model(), wanted)
    got = adapter_tensors(other.get_base_model())
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    with pytest.raises(AdapterError, match="no adapter 'x'"):
        load_adapter_tensors(other.get_base_model(), wanted, "x")


def test_inject_works_without_a_shell():
    base = llama()
    resolved = inject(base, config())
    assert resolved.target_modules == (
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    )
    assert isinstance(base.model.layers[0].self_attn.q_proj, LoraLayer)


def test_gradients_reach_the_adapter_through_gradient_checkpointing():
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = get_peft_model(llama(), config()).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
        assert one.any()


def test_a_layer_that_is_used_twice_stays_one():
    base = llama()
    layers = base.model.layers
    layers[1].self_attn.q_proj = layers[0].self_attn.q_proj
    model = get_peft_model(base, config(target_modules=["q_proj"]))
    assert isinstance(layers[0].self_attn.q_proj, LoraLayer)
    assert layers[1].self_attn.q_proj is layers[0].self_attn.q_proj
    torch.testing.assert_close(logits(model.merge_and_unload()), logits(model))
