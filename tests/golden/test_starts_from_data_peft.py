"""Starts from data: EVA's directions are PEFT's, and LoRA-GA's first step is the gradient's."""

import json

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import ince.lora
from ince.errors import AdapterError, DataError
from ince.lora.placement.inject import lora_layers
from ince.lora.starts.from_data import (
    get_eva_state_dict,
    initialize_lora_eva_weights,
    preprocess_loraga,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning"),
]

TARGETS = ["q_proj", "k_proj", "down_proj"]
IDS = torch.tensor([[1, 5, 9, 2, 7, 40], [3, 3, 0, 11, 30, 2]])


def base(seed=0):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 40}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()


def batches(num=6):
    torch.manual_seed(5)
    ids = [torch.randint(48, (4, 20)) for _ in range(num)]
    return [{"input_ids": i, "attention_mask": torch.ones_like(i)} for i in ids]


def config(start, package=ince.lora, **values):
    values = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **values}
    return package.LoraConfig(init_lora_weights=start, **values)


def eva(rho=1.0, **values):
    return config("eva", eva_config={"rho": rho, "tau": 0.99}, **values)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_evas_directions_span_what_pefts_do():
    # One batch after the other until PEFT has settled is forever for random data: all of it is
    # given as one batch, on which both are a plain principal component analysis.
    whole = {
        name: torch.cat([batch[name] for batch in batches()])
        for name in ("input_ids", "attention_mask")
    }
    peer_config = config("eva", peft, eva_config=peft.EvaConfig(rho=1.0, tau=0.0))
    peer = peft.get_eva_state_dict(base(), [whole] * 3, peer_config, show_progress_bar=False)
    mine = get_eva_state_dict(base(), [whole], eva(), show_progress_bar=False)
    assert mine.keys() == peer.keys()
    for name, a_RD in mine.items():
        torch.testing.assert_close(a_RD @ a_RD.t(), torch.eye(4), rtol=0, atol=1e-4)
        shared = torch.linalg.svdvals(
            a_RD @ torch.nn.functional.normalize(peer[name].float(), dim=1).t()
        )
        # The last direction and the first that is left out are of nearly equal strength.
        assert shared[:2].min() > 0.98
        assert shared.square().mean() > 0.85


@pytest.mark.parametrize("rho", [1.0, 2.0])
@pytest.mark.parametrize("adjust", [True, False])
def test_eva_starts_as_the_base_and_spends_its_ranks(rho, adjust, tmp_path):
    settings = {"rho": rho, "tau": 0.9, "adjust_scaling_factors": adjust}
    model = ince.lora.get_peft_model(base(), config("eva", eva_config=settings)).eval()
    initialize_lora_eva_weights(model, batches(), show_progress_bar=False)
    assert torch.equal(logits(model), logits(base()))
    layers = dict(lora_layers(model.get_base_model()))
    ranks = {name: layer.r["default"] for name, layer in layers.items()}
    assert sum(ranks.values()) == 4 * 6
    assert (len(set(ranks.values())) > 1) == (rho > 1)
    for layer in layers.values():
        assert layer.scaling["default"] == pytest.approx(2 if adjust else 8 / layer.r["default"])
        assert all(tensor.requires_grad for tensor in layer.tensors("default").values())
    with torch.no_grad():
        for layer in layers.values():
            layer.parameter("default", "lora_B.weight").normal_()
    model.save_pretrained(tmp_path)
    again = ince.lora.PeftModel.from_pretrained(base(), tmp_path)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-5)
    peer = peft.PeftModel.from_pretrained(base(), tmp_path)
    torch.testing.assert_close(logits(peer), logits(model), rtol=0, atol=1e-5)


def test_eva_says_what_is_missing():
    model = ince.lora.get_peft_model(base(), eva())
    with pytest.raises(AdapterError, match="there are none"):
        initialize_lora_eva_weights(model)
    with pytest.raises(DataError, match="no batch"):
        initialize_lora_eva_weights(model, [], show_progress_bar=False)
    with pytest.raises(AdapterError, match="6 missing"):
        initialize_lora_eva_weights(model, eva_state_dict={})
    with pytest.raises(AdapterError, match="does not start with EVA"):
        initialize_lora_eva_weights(ince.lora.get_peft_model(base(), config(True)), batches())
    with pytest.raises(AdapterError, match="no adapter 'x'"):
        initialize_lora_eva_weights(model, batches(), adapter_name="x")


def step(model):
    def run():
        for batch in batches(2):
            model(**batch, labels=batch["input_ids"]).loss.backward()

    return run


@pytest.mark.parametrize("direction", ["ArB2r", "A2rBr", "ArBr", "random"])
def test_lora_ga_lies_along_the_gradient_and_starts_as_the_base(direction, tmp_path):
    model = base()
    settings = config("lora_ga", lora_ga_config={"direction": direction, "stable_gamma": 64})
    preprocess_loraga(model, settings, step(model))
    assert all(parameter.grad is None for parameter in model.parameters())
    wide = base()
    step(wide)()
    adapted = ince.lora.get_peft_model(model, settings).eval()
    torch.testing.assert_close(logits(adapted), logits(base()), rtol=0, atol=1e-4)
    for name, layer in lora_layers(adapted.get_base_model()):
        gradient = wide.get_submodule(name).weight.grad
        _, _, leading_8D = torch.linalg.svd(gradient, full_matrices=False)
        a_RD = torch.nn.functional.normalize(layer.factor_parameters("default")[0].detach(), dim=1)
        inside = (a_RD @ leading_8D[:8].t()).norm(dim=1)
        assert inside.min() > 0.99
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    adapted.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["r"], written["init_lora_weights"]) == (8, True)
    for package in (ince.lora, peft):
        other = package.PeftModel.from_pretrained(base(), tmp_path)
        torch.testing.assert_close(logits(other), logits(adapted), rtol=0, atol=1e-4)


def test_lora_ga_without_a_gradient_is_refused_and_leaves_the_model():
    model = base()
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(AdapterError, match="preprocess_loraga"):
        ince.lora.get_peft_model(model, config("lora_ga"))
    with pytest.raises(AdapterError, match="got no gradient"):
        preprocess_loraga(model, config("lora_ga"), lambda: None)
    assert before == [name for name, _ in model.named_modules()]


def test_a_file_of_a_start_from_gradients_is_refused(tmp_path):
    model = ince.lora.get_peft_model(base(), config(True))
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "init_lora_weights": "lora_ga"}))
    with pytest.raises(AdapterError, match="not in its file"):
        ince.lora.PeftModel.from_pretrained(base(), tmp_path)
