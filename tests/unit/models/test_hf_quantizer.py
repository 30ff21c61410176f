"""ince's quantizer in transformers: loading, saving, devices, training."""

import copy
import json
import logging
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
    TrainingArguments,
)

import ince
from ince import Linear4bit, NF4Config
from ince.errors import QuantError
from ince.models.hf_quantizer import InceQuantizer, PackedModelConfig, make_quantized, register
from ince.quant import packed_modules, quantize_model

IDS = torch.tensor([[1, 5, 9, 2, 7, 40], [3, 3, 0, 11, 30, 2]])
SIZES = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def saved(model, folder):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.05
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, attention_bias=True)
    return saved(LlamaForCausalLM(config), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, tie_word_embeddings=True)
    return saved(LlamaForCausalLM(config), tmp_path_factory.mktemp("tied"))


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    torch.manual_seed(0)
    config = MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)
    return saved(MixtralForCausalLM(config), tmp_path_factory.mktemp("mixtral"))


def load(folder, kind=AutoModelForCausalLM, *, options=None, **settings):
    return kind.from_pretrained(
        folder, quantization_config=NF4Config(**settings), **(options or {})
    )


def load_packed(folder, kind=AutoModelForCausalLM, *, options=None, **settings):
    config = AutoConfig.from_pretrained(folder, quantization_config=NF4Config(**settings))
    return kind.from_pretrained(folder, config=config, **(options or {}))


def assert_same(a, b):
    state_a, state_b = a.state_dict(), b.state_dict()
    assert state_a.keys() == state_b.keys()
    for name, tensor in state_a.items():
        assert tensor.dtype == state_b[name].dtype, name
        assert torch.equal(tensor, state_b[name]), name
    with torch.no_grad():
        assert torch.equal(a(IDS)[0], b(IDS)[0])


# --------------------------------------------------------------------------------- the registry

# The other order is that of every test here.
CONFIG_FIRST = """
import sys
import ince

config = ince.NF4Config()
assert config.quant_method == "ince" and config.to_dict()["quant_method"] == "ince"
assert "transformers" not in sys.modules

from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], quantization_config=config)
print(type(model.model.layers[0].mlp.up_proj).__module__)
"""


def test_a_config_brings_in_no_transformers_and_may_be_made_before_it(llama):
    done = subprocess.run(
        [sys.executable, "-c", CONFIG_FIRST, str(llama)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "ince.quant.linear4bit", done.stderr


def test_registering_twice_is_once():
    register()
    register()
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    assert AUTO_QUANTIZER_MAPPING["ince"] is InceQuantizer


# ------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("folder", ["llama", "tied", "mixtral"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"quant_type": "fp4", "double_quant": False, "blocksize": 32},
        {"quant_type": "int4", "compute_dtype": "float32"},
        {"quantize_head": True, "skip_modules": ("q_proj",)},
    ],
)
def test_a_model_is_as_if_quantized_after_loading(folder, settings, request):
    folder = request.getfixturevalue(folder)
    model = load(folder, **settings)
    after = AutoModelForCausalLM.from_pretrained(folder)
    quantize_model(after, NF4Config(**settings))
    assert list(packed_modules(model)) == list(packed_modules(after))
    assert_same(model, after)


def test_what_a_model_says_of_itself(llama):
    model = load(llama)
    assert model.is_quantized
    assert model.quantization_method == "ince"
    assert isinstance(model.hf_quantizer, InceQuantizer)
    assert model.hf_quantizer.is_trainable
    assert model.hf_quantizer.is_serializable()
    assert model.hf_quantizer.is_compileable
    assert not model.hf_quantizer.is_qat_trainable
    assert not load(llama, quant_type="int4").hf_quantizer.is_serializable()
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.bias is not None
    assert not layer.bias.requires_grad
    assert isinstance(model.lm_head, nn.Linear)
    assert not model.training


def test_weights_are_packed_one_by_one_as_they_are_read(llama, monkeypatch):
    held = []
    pack = Linear4bit.from_weight.__func__
    models = []
    build = LlamaForCausalLM.__init__

    def remember(self, *args, **kwargs):
        build(self, *args, **kwargs)
        models.append(self)

    def spy(cls, weight, bias=None, **kwargs):
        held.append(
            sum(
                not module.weight.is_meta
                for name, module in models[0].named_modules()
                if isinstance(module, nn.Linear) and name != "lm_head"
            )
        )
        return pack(cls, weight, bias, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "__init__", remember)
    monkeypatch.setattr(Linear4bit, "from_weight", classmethod(spy))
    load(llama)
    # When a weight is packed, no other has been put into the model in floats.
    assert held == [0] * 14


def test_the_dtype_asked_for_is_that_of_what_is_not_packed(llama):
    model = load(llama, options={"dtype": torch.float32})
    assert model.lm_head.weight.dtype == torch.float32
    assert model.model.layers[0].mlp.up_proj.compute_dtype == torch.bfloat16


def test_the_base_of_a_model_is_quantized_without_its_head(llama):
    assert len(packed_modules(load(llama, AutoModel))) == 14


def test_the_new_head_of_a_task_stays_in_floats(llama):
    model = load(llama, AutoModelForSequenceClassification)
    assert type(model.score) is nn.Linear
    assert len(packed_modules(model)) == 14


def test_damaged_weights_are_named(llama, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(llama)
    model.model.layers[1].mlp.up_proj.weight.data[0, :2] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(QuantError) as caught:
        load(tmp_path)
    assert caught.value.where == "model.layers.1.mlp.up_proj.weight"
    assert "2 of 384" in str(caught.value)


def test_a_module_to_be_skipped_must_be_there(llama):
    with pytest.raises(QuantError, match="not in the model"):
        load(llama, skip_modules=("no_such",))


# ------------------------------------------------------------------------- saving, loading back


@pytest.mark.parametrize("folder", ["llama", "tied", "mixtral"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"quant_type": "fp4", "double_quant": False, "blocksize": 128}, {"scale_search": True}],
)
def test_a_model_comes_back_as_it_was(folder, settings, request, tmp_path):
    model = load(request.getfixturevalue(folder), **settings)
    model.save_pretrained(tmp_path / "a")
    stored = json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"]
    assert stored["quant_method"] == "bitsandbytes"
    assert stored["llm_int8_skip_modules"] == ["lm_head"]
    again = load_packed(tmp_path / "a")
    assert_same(model, again)
    assert again.hf_quantizer.pre_quantized
    for name in ("quant_type", "double_quant", "blocksize"):
        asked = NF4Config(**settings)
        assert getattr(again.config.quantization_config.config, name) == getattr(asked, name)
    again.save_pretrained(tmp_path / "b")
    a, b = (tmp_path / each / "model.safetensors" for each in "ab")
    assert a.read_bytes() == b.read_bytes()


def test_shards_are_read(mixtral, tmp_path):
    model = load(mixtral)
    model.save_pretrained(tmp_path, max_shard_size="3KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same(model, load_packed(tmp_path))


def test_parts_of_a_packed_model_are_read(llama, tmp_path):
    model = load(llama)
    model.save_pretrained(tmp_path / "whole")
    base = load_packed(tmp_path / "whole", AutoModel)
    assert_same(base, model.model)
    base.save_pretrained(tmp_path / "base")
    assert_same(load_packed(tmp_path / "base", AutoModel), base)


def test_a_folder_of_floats_is_quantized_although_its_config_says_otherwise(llama, tmp_path):
    model = load(llama)
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.quantization_config = NF4Config()
    again = AutoModelForCausalLM.from_pretrained(tmp_path, config=config)
    assert not again.hf_quantizer.pre_quantized
    assert_same(again, model)


def test_a_model_s_own_config_can_be_handed_on(llama, tmp_path):
    model = load(llama)
    model.save_pretrained(tmp_path)
    assert_same(AutoModelForCausalLM.from_pretrained(tmp_path, config=model.config), model)


def test_settings_of_the_file_are_not_overruled(llama, tmp_path):
    load(llama, blocksize=128).save_pretrained(tmp_path)
    with pytest.raises(QuantError, match="packed already") as caught:
        load_packed(tmp_path, blocksize=64)
    assert caught.value.expected == "blocksize=128"
    model = load_packed(tmp_path, compute_dtype="float32", blocksize=128)
    assert model.model.layers[0].mlp.up_proj.compute_dtype == torch.float32


def test_transformers_refuses_a_second_config_beside_the_stored_one(llama, tmp_path):
    load(llama).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="passing a NF4Config"):
        load(tmp_path)


def test_int4_is_not_saved(llama, tmp_path):
    with pytest.raises(ValueError, match="not serializable"):
        load(llama, quant_type="int4").save_pretrained(tmp_path)
    assert PackedModelConfig(NF4Config(quant_type="int4")).to_dict()["quant_type"] == "int4"


def test_another_way_of_packing_is_told_to_transformers(llama, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(llama)
    quantize_model(model, NF4Config())
    make_quantized(model, NF4Config())
    assert model.is_quantized
    model.save_pretrained(tmp_path)
    assert_same(load_packed(tmp_path), model)


def test_experts_that_were_packed_in_another_way_are_saved_as_stacks(mixtral, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(mixtral)
    del model._weight_conversions  # as of a model that transformers did not load
    quantize_model(model, NF4Config())
    make_quantized(model, NF4Config())
    assert not model.hf_quantizer.is_compileable
    model.save_pretrained(tmp_path)
    assert_same(load_packed(tmp_path), model)


@pytest.mark.parametrize("folder", ["llama", "mixtral"])
def test_a_model_can_be_expanded_again(folder, request, tmp_path):
    model = load(request.getfixturevalue(folder))
    with torch.no_grad():
        logits = model(IDS).logits
    model.save_pretrained(tmp_path)
    plain = model.dequantize()
    assert packed_modules(plain) == {}
    assert not plain.is_quantized
    assert not hasattr(plain, "hf_quantizer")
    plain.set_experts_implementation("eager") if folder == "mixtral" else None
    with torch.no_grad():
        torch.testing.assert_close(plain(IDS).logits, logits, rtol=0, atol=0.02)


# ------------------------------------------------------------------------------------- devices

MAP = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.norm": "cpu",
    "lm_head": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
}


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, {"": torch.device("cpu")}])
def test_a_device_map_of_one_device(llama, device_map):
    assert_same(load(llama, options={"device_map": device_map}), load(llama))


@pytest.mark.parametrize("folder", ["llama", "mixtral"])
def test_layers_on_disk_are_there_when_they_run(folder, request, tmp_path):
    folder = request.getfixturevalue(folder)
    whole = load(folder)
    options = {
        "device_map": MAP,
        "offload_folder": str(tmp_path / "offload"),
        "offload_buffers": True,
    }
    model = load(folder, options=options)
    packed = packed_modules(model)
    assert all(each.packed.is_meta == ("layers.1" in name) for name, each in packed.items())
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, whole(IDS).logits)
    assert packed["model.layers.1.self_attn.q_proj"].packed.is_meta
    with pytest.warns(UserWarning, match="offloaded"):
        model.save_pretrained(tmp_path / "saved")
    assert_same(load_packed(tmp_path / "saved"), whole)
    again = load_packed(tmp_path / "saved", options=options)
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, whole(IDS).logits)
    with pytest.raises(QuantError, match="offloaded"):
        model.dequantize()


def test_device_maps_are_planned_by_packed_sizes(llama):
    quantizer = InceQuantizer(NF4Config(), pre_quantized=False)
    model = AutoModelForCausalLM.from_pretrained(llama)
    quantizer.names = {"model.layers.0.mlp.up_proj.weight"}
    for name, weight in model.named_parameters():
        size = 4.127 / 8 if name in quantizer.names else 2
        assert quantizer.param_element_size(model, name, weight) == pytest.approx(size, rel=1e-3)


# ------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("folder", ["llama", "mixtral"])
def test_transformers_trainer_trains_adapters_over_it(folder, request, tmp_path):
    model = load(request.getfixturevalue(folder), compute_dtype="float32")
    config = ince.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = ince.get_peft_model(model, config)
    before = copy.deepcopy(model.state_dict())
    rows = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}] * 8
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        learning_rate=5e-2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
    )
    trainer = Trainer(model=adapted, args=arguments, train_dataset=rows)
    trainer.train()
    losses = [each["loss"] for each in trainer.state.log_history if "loss" in each]
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert losses[-1] < losses[0]


def test_a_merged_model_is_quantized_no_longer(llama, tmp_path):
    adapted = ince.get_peft_model(load(llama), ince.LoraConfig(r=2, target_modules=["q_proj"]))
    merged = adapted.merge_and_unload()
    assert not merged.is_quantized
    assert not hasattr(merged, "hf_quantizer")
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, merged(IDS).logits)


def test_nothing_is_said_to_a_log(llama, caplog):
    with caplog.at_level(logging.WARNING):
        load(llama)
    assert [record for record in caplog.records if record.name.startswith("ince")] == []
