"""Starts against PEFT's: the same function at first, the same update, files that cross over."""

import json

import bitsandbytes
import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import ince.lora
from ince.lora.placement.inject import lora_layers
from ince.lora.starts.loftq import loftq
from ince.quant import NF4Config, quantize_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    # PEFT warns of its own starts when it converts them.
    pytest.mark.filterwarnings("ignore:.*:UserWarning"),
]

IDS = torch.tensor([[1, 5, 9, 2, 7, 40], [3, 3, 0, 11, 30, 2]])
TARGETS = ["q_proj", "v_proj", "down_proj"]


def base(seed=0):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 40}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()


def ours(model, start, **values):
    torch.manual_seed(1)
    values = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **values}
    return ince.lora.get_peft_model(
        model, ince.lora.LoraConfig(init_lora_weights=start, **values)
    ).eval()


def theirs(model, start, **values):
    torch.manual_seed(1)
    values = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **values}
    return peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=start, **values)).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def trained(model):
    """The same change of A and B on either side."""
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def product(model, name):
    layer = model.get_submodule(f"base_model.model.{name}")
    return layer.lora_B["default"].weight @ layer.lora_A["default"].weight


@pytest.mark.parametrize("start", ["gaussian", "orthogonal", "pissa", "pissa_niter_8", "olora"])
def test_a_fresh_adapter_is_the_base(start):
    close(logits(ours(base(), start)), logits(base()), atol=1e-4)


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal"])
def test_a_seed_gives_pefts_adapter(start):
    one, other = ours(base(), start), theirs(base(), start)
    mine = {n: p for n, p in one.named_parameters() if "lora_" in n}
    peer = {n: p for n, p in other.named_parameters() if "lora_" in n}
    assert mine.keys() == peer.keys()
    for name, parameter in mine.items():
        close(parameter, peer[name], atol=1e-6)


@pytest.mark.parametrize("values", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}])
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_the_update_is_pefts(start, values):
    one, other = ours(base(), start, **values), theirs(base(), start, **values)
    for name, _ in lora_layers(one.get_base_model()):
        close(product(one, name), product(other, name))


@pytest.mark.parametrize("values", [{}, {"use_rslora": True}, {"use_dora": True}])
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_trained_adapters_cross_over(start, values, tmp_path):
    mine = trained(ours(base(), start, **values))
    mine.save_pretrained(tmp_path / "ours")
    assert (
        json.loads((tmp_path / "ours/adapter_config.json").read_text())["init_lora_weights"]
        == start
    )
    assert (logits(mine) - logits(base())).abs().max() > 1e-2
    close(logits(peft.PeftModel.from_pretrained(base(), tmp_path / "ours")), logits(mine), 1e-4)
    close(logits(ince.lora.PeftModel.from_pretrained(base(), tmp_path / "ours")), logits(mine))
    peer = trained(theirs(base(), start, **values))
    peer.save_pretrained(tmp_path / "theirs")
    close(
        logits(ince.lora.PeftModel.from_pretrained(base(), tmp_path / "theirs")),
        logits(peer),
        1e-4,
    )


@pytest.mark.parametrize("values", [{}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 3}}])
@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_the_plain_form_fits_the_unchanged_base(start, values, tmp_path):
    fresh = ours(base(), start, **values)
    fresh.save_pretrained(tmp_path / "start")
    model = trained(fresh)
    model.save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    config = json.loads((tmp_path / "plain/adapter_config.json").read_text())
    assert config["r"] == 8
    assert config["init_lora_weights"] is True
    close(logits(peft.PeftModel.from_pretrained(base(), tmp_path / "plain")), logits(model))
    close(logits(ince.lora.PeftModel.from_pretrained(base(), tmp_path / "plain")), logits(model))


def test_pefts_conversion_loads_here(tmp_path):
    peer = theirs(base(), "pissa")
    peer.peft_config["default"].init_lora_weights = True
    peer.save_pretrained(tmp_path / "start")
    peer.peft_config["default"].init_lora_weights = "pissa"
    trained(peer).save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    wanted = logits(trained(theirs(base(), "pissa")))
    close(logits(ince.lora.PeftModel.from_pretrained(base(), tmp_path / "plain")), wanted, 1e-4)


def test_the_base_is_shared_and_never_touched():
    model = base()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = trained(ours(model, "pissa"))
    with adapted.disable_adapter():
        close(logits(adapted), logits(base()), 0)
    plain = adapted.unload()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_merging_takes_the_start_off():
    model = trained(ours(base(), "pissa"))
    close(logits(model.merge_and_unload()), logits(model))


@pytest.mark.parametrize("s", [1.0, 2.0])
def test_loftq_loses_no_more_than_bitsandbytes_weights_and_pefts_formula(s):
    torch.manual_seed(0)
    weight = torch.randn(96, 128) * torch.linspace(0.2, 2, 128)
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", blocksize=64)
    base_OD = bitsandbytes.functional.dequantize_4bit(packed, state)
    u, strengths, v = torch.linalg.svd(weight - base_OD, full_matrices=False)
    # PEFT starts its own GPU for this; its formula has no s, which its layers multiply by.
    repair = (u[:, :8] * strengths[:8]) @ v[:8]
    peer = (weight - base_OD - s * repair).norm()
    start = loftq(weight, 8, s, config=NF4Config(double_quant=False, compute_dtype="float32"))
    assert start.quantized is not None
    mine_OD = start.quantized.dequantize(torch.float32)
    close(mine_OD, base_OD, atol=1e-6)
    mine = (weight - mine_OD - s * start.b_OR @ start.a_RD).norm()
    assert mine <= peer * (1 + 1e-5)
    assert (mine < 0.95 * peer) == (s != 1)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_over_4_bits_the_file_is_plain_since_another_precision_starts_elsewhere(start, tmp_path):
    packed = base()
    quantize_model(packed, NF4Config(compute_dtype="float32"))
    model = trained(ours(packed, start))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"]) == (8, True)
    again = base()
    quantize_model(again, NF4Config(compute_dtype="float32"))
    close(logits(ince.lora.PeftModel.from_pretrained(again, tmp_path)), logits(model))
