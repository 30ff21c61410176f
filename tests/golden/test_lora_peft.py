"""PEFT as the oracle: its adapters are ours and ours are its, to the logits.

Every model here has random weights; the golden thing is agreement, not the numbers.
"""

import json
import math

import peft
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import ince.lora
from ince.lora import adapter_tensors

# PEFT asks transformers by a name that is going away. Any other warning of its own, such as of
# a key that it does not know in a file of ours, fails the test.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

IDS = torch.tensor([[1, 5, 9, 2, 7, 40], [3, 3, 0, 11, 30, 2]])
SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

# Every option that both sides build, alone and together.
CONFIGS = {
    "all-linear": {"target_modules": "all-linear"},
    "names": {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "mlp.down_proj"]},
    "full name": {"target_modules": ["model.layers.1.self_attn.v_proj"]},
    "regex": {"target_modules": r".*\.layers\.[02]\..*(q|v)_proj"},
    "default": {},
    "rslora": {"r": 16, "lora_alpha": 2, "use_rslora": True, "target_modules": "all-linear"},
    "exclude": {"target_modules": "all-linear", "exclude_modules": ["q_proj", "mlp.up_proj"]},
    "exclude regex": {"target_modules": ["q_proj"], "exclude_modules": r".*layers\.1.*"},
    "layers": {
        "target_modules": ["q_proj", "o_proj"],
        "layers_to_transform": [0, 2],
        "layers_pattern": "layers",
    },
    "one layer": {"target_modules": ["up_proj"], "layers_to_transform": 1},
    "patterns": {
        "target_modules": ["q_proj", "k_proj", "up_proj"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 3, "k_proj": 1, "^model.*up_proj": 5},
        "alpha_pattern": {"up_proj": 2, "q_proj": 7},
    },
    "head": {"target_modules": ["lm_head", "q_proj"]},
}


def base(kind="llama", **values):
    torch.manual_seed(0)
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8, **values)).eval()
    return LlamaForCausalLM(LlamaConfig(**SIZES, **values)).eval()


def theirs(model, values):
    torch.manual_seed(1)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", init_lora_weights=False, **json.loads(json.dumps(values))
    )
    return peft.get_peft_model(model, config).eval()


def ours(model, values):
    torch.manual_seed(1)
    config = ince.lora.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **values)
    return ince.lora.get_peft_model(model, config).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def different(a, b):
    assert (a - b).abs().max() > 1e-3


@pytest.fixture(params=CONFIGS)
def values(request):
    return CONFIGS[request.param]


def test_a_config_means_the_same_layers_and_counts(values, capsys):
    one, other = ours(base(), values), theirs(base(), values)
    names = {name for name, p in one.named_parameters() if p.requires_grad}
    assert names == {name for name, p in other.named_parameters() if p.requires_grad}
    shapes = {name: p.shape for name, p in one.named_parameters()}
    assert shapes == {name: p.shape for name, p in other.named_parameters()}
    assert one.get_nb_trainable_parameters() == other.get_nb_trainable_parameters()
    one.print_trainable_parameters()
    line = capsys.readouterr().out
    other.print_trainable_parameters()
    assert line == capsys.readouterr().out


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_our_adapter_loads_in_peft(tmp_path, values, kind):
    model = ours(base(kind), values)
    different(logits(model), logits(base(kind)))
    model.save_pretrained(tmp_path)
    close(logits(peft.PeftModel.from_pretrained(base(kind), tmp_path)), logits(model))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_their_adapter_loads_here(tmp_path, values, kind):
    model = theirs(base(kind), values)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = ince.lora.PeftModel.from_pretrained(base(kind), tmp_path)
    different(logits(loaded), logits(base(kind)))
    close(logits(loaded), logits(model))


def test_the_files_have_the_same_keys_and_values(tmp_path, values):
    ours(base(), values).save_pretrained(tmp_path / "ours")
    theirs(base(), values).save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    one, other = (
        json.loads((tmp_path / name / "adapter_config.json").read_text())
        for name in ("ours", "theirs")
    )
    one_names, other_names = one.pop("target_modules"), other.pop("target_modules")
    # Names may be listed in full or short; what they mean is compared above.
    if isinstance(values.get("target_modules"), list):
        assert set(one_names) == set(other_names)
    one_excluded, other_excluded = one.pop("exclude_modules"), other.pop("exclude_modules")
    assert one_excluded == other_excluded or set(one_excluded) == set(other_excluded)
    assert one == other
    with safe(tmp_path / "ours") as a, safe(tmp_path / "theirs") as b:
        assert a.metadata() == b.metadata()
        assert set(a.keys()) == set(b.keys())


def safe(folder):
    from safetensors import safe_open

    return safe_open(folder / "adapter_model.safetensors", "pt")


def test_a_round_trip_through_peft_keeps_the_tensors(tmp_path):
    model = ours(base(), CONFIGS["all-linear"])
    model.save_pretrained(tmp_path / "a")
    peft.PeftModel.from_pretrained(base(), tmp_path / "a").save_pretrained(tmp_path / "b")
    again = ince.lora.PeftModel.from_pretrained(base(), tmp_path / "b")
    wanted = adapter_tensors(model.get_base_model())
    got = adapter_tensors(again.get_base_model())
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_merged_is_theirs_and_the_adapters(tmp_path, values):
    model = ours(base(), values)
    model.save_pretrained(tmp_path)
    merged = model.merge_and_unload()
    close(logits(merged), logits(model))
    other = peft.PeftModel.from_pretrained(base(), tmp_path).merge_and_unload()
    close(logits(merged), logits(other))


@pytest.mark.parametrize("tied", [True, False])
def test_merged_over_tied_embeddings(tmp_path, tied):
    model = ours(base(tie_word_embeddings=tied), CONFIGS["all-linear"])
    close(logits(model.merge_and_unload()), logits(model))
    trained, total = model.get_nb_trainable_parameters()
    other = theirs(base(tie_word_embeddings=tied), CONFIGS["all-linear"])
    assert (trained, total) == other.get_nb_trainable_parameters()


def test_gradients_are_theirs(tmp_path):
    model = ours(base(), CONFIGS["all-linear"])
    model.save_pretrained(tmp_path)
    other = peft.PeftModel.from_pretrained(base(), tmp_path, is_trainable=True)
    for each in (model, other):
        each(input_ids=IDS, labels=IDS).loss.backward()
    wanted = {name: p.grad for name, p in other.named_parameters() if p.requires_grad}
    got = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert got.keys() == wanted.keys()
    for name, grad in got.items():
        torch.testing.assert_close(grad, wanted[name], rtol=1e-4, atol=1e-7)


def test_a_fresh_adapter_starts_with_the_same_spread():
    sides = (
        peft.get_peft_model(base(), peft.LoraConfig(r=32, target_modules="all-linear")),
        ince.lora.get_peft_model(base(), ince.lora.LoraConfig(r=32, target_modules="all-linear")),
    )
    spreads = [
        torch.cat([p.detach().flatten() for n, p in side.named_parameters() if "lora_A" in n]).std()
        for side in sides
    ]
    assert math.isclose(*spreads, rel_tol=0.03)


def test_an_adapter_in_a_subfolder_is_theirs(tmp_path):
    model = ours(base(), CONFIGS["names"])
    model.add_adapter(
        "other", ince.lora.LoraConfig(target_modules=["k_proj"], init_lora_weights=False)
    )
    model.save_pretrained(tmp_path)
    other = peft.PeftModel.from_pretrained(base(), tmp_path)
    other.load_adapter(tmp_path / "other", "other")
    for name in ("default", "other"):
        model.set_adapter(name)
        other.set_adapter(name)
        close(logits(other), logits(model))
