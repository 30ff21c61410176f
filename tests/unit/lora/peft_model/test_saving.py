"""Written as PEFT writes it: which adapters, where, with what besides, and in plain form."""

import json

import pytest
import torch
from safetensors.torch import load_file

from ince.errors import AdapterError, InputError, OutputError
from ince.lora import LoraLayer, PeftModel, VeraConfig, get_peft_model

FILES = ["adapter_config.json", "adapter_model.safetensors"]


def listed(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_all_or_some_adapters(model, tmp_path):
    model.save_pretrained(tmp_path / "all")
    assert listed(tmp_path / "all") == [*FILES, *(f"{n}/{f}" for n in "bc" for f in FILES)]
    model.save_pretrained(str(tmp_path / "some"), selected_adapters=["c"])
    assert listed(tmp_path / "some") == [f"c/{file}" for file in FILES]
    with pytest.raises(AdapterError, match="has no adapter 'x'"):
        model.save_pretrained(tmp_path / "none", selected_adapters=["default", "x"])
    model.save_pretrained(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()


def test_pickles_and_unknown_arguments_are_refused(model, tmp_path):
    with pytest.raises(InputError, match="safetensors alone"):
        model.save_pretrained(tmp_path / "x", safe_serialization=False)
    with pytest.raises(InputError, match="did you mean 'selected_adapters'"):
        model.save_pretrained(tmp_path / "x", selected_adapter=["b"])
    with pytest.raises(InputError, match="not a choice"):
        model.save_pretrained(tmp_path / "x", save_embedding_layers="yes")
    assert not (tmp_path / "x").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises((InputError, OutputError), match="file"):
        model.save_pretrained(tmp_path / "file")


def test_one_bad_adapter_keeps_all_from_being_written(model, tmp_path):
    model.get_base_model().model.layers[0].self_attn.q_proj.tensors("c")[
        "lora_A.weight"
    ].data.fill_(torch.nan)
    with pytest.raises(AdapterError, match="NaN"):
        model.save_pretrained(tmp_path / "x", selected_adapters=["c"])
    assert not (tmp_path / "x").exists()


def test_the_live_config_is_not_changed(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert not model.peft_config["default"].inference_mode
    written = json.loads((tmp_path / FILES[0]).read_text())
    assert written["inference_mode"]
    assert written["auto_mapping"]["base_model_class"] == "LlamaForCausalLM"


def test_weights_out_of_a_gathered_state_dict(model, tmp_path):
    gathered = {name: tensor * 2 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "ours", state_dict=gathered)
    of_base = {name.removeprefix("base_model.model."): t for name, t in gathered.items()}
    model.save_pretrained(tmp_path / "theirs", state_dict=of_base)
    model.save_pretrained(tmp_path / "live")
    live = load_file(tmp_path / "live" / FILES[1])
    for name in ("ours", "theirs"):
        saved = load_file(tmp_path / name / FILES[1])
        assert saved.keys() == live.keys()
        assert all(torch.equal(saved[key], live[key] * 2) for key in live)
    with pytest.raises(AdapterError, match="does not hold the whole adapter"):
        model.save_pretrained(tmp_path / "x", state_dict={})


def test_embeddings_come_along_when_asked_or_resized(llama, lora, tmp_path, logits):
    base = llama()
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    model = get_peft_model(base, lora())
    names = ["base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.weight"]

    def saved(choice):
        folder = tmp_path / f"{choice}"
        model.save_pretrained(folder, save_embedding_layers=choice)
        return set(load_file(folder / FILES[1])) & set(names)

    assert saved(True) == set(names)
    assert saved(False) == set()
    assert saved("auto") == set()
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "True")
    assert loaded.peft_config["default"].modules_to_save is None
    assert torch.equal(logits(loaded), logits(model))
    base.config.vocab_size = 50  # as resizing sets it
    assert saved("auto") == set(names)


def test_embeddings_that_differ_are_the_adapters_own(llama, lora, tmp_path, logits):
    base = llama()
    with torch.no_grad():
        base.model.embed_tokens.weight.mul_(1.5)
    model = get_peft_model(base, lora())
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    fresh = llama()
    plain = logits(fresh)
    loaded = PeftModel.from_pretrained(fresh, tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model))
    assert loaded.peft_config["default"].modules_to_save == ("model.embed_tokens",)
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded), plain)
    bigger = llama()
    bigger.resize_token_embeddings(60, mean_resizing=False)
    with pytest.raises(AdapterError, match=r"resize_token_embeddings\(48\)"):
        PeftModel.from_pretrained(bigger, tmp_path)


def test_adapted_embeddings_over_another_base_are_refused(llama, lora, tmp_path):
    model = get_peft_model(llama(), lora(target_modules=["embed_tokens"]))
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    PeftModel.from_pretrained(llama(), tmp_path)
    other = llama()
    with torch.no_grad():
        other.model.embed_tokens.weight.add_(1)
    with pytest.raises(AdapterError, match="over other embeddings"):
        PeftModel.from_pretrained(other, tmp_path)


# --------------------------------------------------------------------------------- plain form


@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_start_that_is_taken_off_is_written_as_plain_lora(
    llama, lora, tmp_path, logits, use_rslora
):
    patterns = {"rank_pattern": {"v_proj": 3}, "alpha_pattern": {"q_proj": 5}}
    model = get_peft_model(llama(), lora(use_rslora=use_rslora, **patterns))
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            a, b = layer.factor_parameters("default")
            layer.set_start("default", torch.randn_like(a), torch.randn_like(b))
    model.save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=tmp_path / "unused"
    )
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "plain")
    torch.testing.assert_close(logits(loaded), logits(model))
    config = loaded.peft_config["default"]
    assert config.r == 4
    assert config.rank_pattern == {"v_proj": 6}
    assert config.init_lora_weights is True


def test_the_start_is_read_where_the_model_does_not_know_it(llama, lora, tmp_path):
    model = get_peft_model(llama(), lora())
    model.save_pretrained(tmp_path / "start")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    model.save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "plain")
    started = PeftModel.from_pretrained(llama(), tmp_path / "start")
    sides = [
        [layer for layer in each.modules() if isinstance(layer, LoraLayer)]
        for each in (loaded, model, started)
    ]
    for plain, trained, start in zip(*sides, strict=True):
        wanted = trained.get_delta_weight("default") - start.get_delta_weight("default")
        torch.testing.assert_close(plain.get_delta_weight("default"), wanted)


def test_what_has_no_plain_form(llama, lora, tmp_path):
    model = get_peft_model(llama(), VeraConfig(r=4, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "start")
    with pytest.raises(AdapterError, match="plain form"):
        model.save_pretrained(
            tmp_path / "x", path_initial_model_for_weight_conversion=tmp_path / "start"
        )
    plain = get_peft_model(llama(), lora(r=4))
    get_peft_model(llama(), lora()).save_pretrained(tmp_path / "other")
    with pytest.raises(AdapterError, match="does not have its tensors"):
        plain.save_pretrained(
            tmp_path / "x", path_initial_model_for_weight_conversion=tmp_path / "other"
        )
