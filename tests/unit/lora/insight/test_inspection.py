import json

import pytest
import torch

from ince.errors import AdapterError, CorruptFileError, InputError
from ince.lora import LoraConfig, get_peft_model
from ince.lora.insight import BaseWeights, inspect_adapter

P = "base_model.model."
NAMES = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj")


def test_every_number_of_a_layer(make_adapter, made_factors):
    tensors = made_factors(NAMES)
    found = inspect_adapter(make_adapter(tensors))
    assert [layer.name for layer in found.layers] == list(NAMES)
    layer = found.layers[1]
    a, b = (tensors[f"{P}{NAMES[1]}.lora_{side}.weight"].double() for side in "AB")
    sigma = torch.linalg.svdvals(2.0 * b @ a)[:4]
    assert layer.singular_values == pytest.approx(sigma.tolist())
    assert layer.frobenius_norm == pytest.approx(float(sigma.norm()))
    assert layer.spectral_norm == pytest.approx(float(sigma[0]))
    assert layer.stable_rank == pytest.approx(float((sigma / sigma[0]).square().sum()))
    energy = sigma.square().cumsum(0) / sigma.square().sum()
    assert layer.rank_90 == int((energy < 0.9).sum()) + 1
    assert (layer.kind, layer.number, layer.update.rank) == ("q_proj", 1, 4)
    assert found.num_parameters == 2 * (4 * 12 + 10 * 4)
    assert found.dtypes == ("float32",)
    assert found.file_bytes == (found.folder / "adapter_model.safetensors").stat().st_size
    assert (found.ranks, found.scales) == ((4,), (2.0,))


def test_beside_the_base_that_it_was_made_on(tiny_llama, tmp_path):
    base = tiny_llama()
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(
        base,
        LoraConfig(
            r=4,
            target_modules=["q_proj", "embed_tokens"],
            modules_to_save=["up_proj"],
            init_lora_weights=False,
        ),
    )
    for name, parameter in model.named_parameters():
        if "up_proj" in name and parameter.requires_grad:
            parameter.data.mul_(1.1)
    model.save_pretrained(tmp_path / "adapter")
    found = inspect_adapter(tmp_path / "adapter", base=BaseWeights(tmp_path / "base"))
    assert found.num_parameters == model.get_nb_trainable_parameters()[0]
    assert found.uncompared == {}
    assert found.unknown == ()
    layers = {layer.name: layer for layer in found.layers}
    weight = base.get_input_embeddings().base_layer.weight.double()
    embedding = layers["model.embed_tokens"]
    assert embedding.beside.weight_norm == pytest.approx(float(weight.norm()), rel=1e-5)
    assert embedding.relative_norm == pytest.approx(
        embedding.frobenius_norm / float(weight.norm()), rel=1e-5
    )
    assert {each.name: each.kind for each in found.trained} == {
        f"model.layers.{n}.mlp.up_proj.weight": "module" for n in range(2)
    }
    assert all(each.change == pytest.approx(0.1, rel=1e-3) for each in found.trained)


def test_dora_tells_its_magnitudes_and_their_gain(tiny_llama, tmp_path):
    base = tiny_llama()
    base.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    found = inspect_adapter(tmp_path / "adapter", base=BaseWeights(tmp_path / "base"))
    layer = found.layers[0]
    assert layer.magnitude[0] <= layer.magnitude[1]
    assert layer.gain == pytest.approx((1.0, 1.0), rel=1e-4)
    assert any("DoRA" in note for note in found.notes)


def test_an_untrained_adapter_is_zero_and_no_failure(make_adapter, made_factors):
    tensors = made_factors(NAMES)
    for name in tensors:
        if "lora_B" in name:
            tensors[name].zero_()
    layer = inspect_adapter(make_adapter(tensors)).layers[0]
    assert (layer.frobenius_norm, layer.rank_90, layer.stable_rank) == (0.0, 0, 0.0)


def test_what_is_not_known_is_listed(make_adapter, made_factors):
    tensors = made_factors(NAMES[:1]) | {f"{P}x.ia3_l": torch.ones(3), "stray": torch.ones(2)}
    found = inspect_adapter(make_adapter(tensors, use_qalora=True))
    assert found.unknown == (f"{P}x.ia3_l", "stray")
    assert any("use_qalora" in note for note in found.notes)


def test_a_start_that_took_from_the_base_is_told(make_adapter, made_factors):
    found = inspect_adapter(make_adapter(made_factors(NAMES), init_lora_weights="pissa"))
    assert found.settings.changes_base
    assert any("pissa" in note for note in found.notes)


def test_an_adapter_of_whole_modules_alone(make_adapter):
    found = inspect_adapter(
        make_adapter({f"{P}score.weight": torch.ones(2, 8)}, modules_to_save=["score"])
    )
    assert found.layers == ()
    assert found.trained[0].norm == 4.0
    assert found.num_parameters == 16


def test_everything_is_json(make_adapter, made_factors):
    found = inspect_adapter(make_adapter(made_factors(NAMES)))
    read = json.loads(json.dumps(found.to_dict()))
    assert read["layers"][0]["singular_values"] == list(found.layers[0].singular_values)


def test_progress_is_told(make_adapter, made_factors):
    seen = []
    inspect_adapter(make_adapter(made_factors(NAMES)), progress=lambda *each: seen.append(each))
    assert [done for _, done, _ in seen] == [0, 1]


@pytest.mark.parametrize("tensors", [{}, {"stray": torch.ones(2)}])
def test_an_adapter_that_holds_nothing(make_adapter, tensors):
    folder = make_adapter(tensors or {"x": torch.ones(1)})
    with pytest.raises(AdapterError, match="holds no tensors"):
        inspect_adapter(folder)


def test_hostile_files(make_adapter, made_factors, tmp_path):
    with pytest.raises(InputError, match="no such adapter folder"):
        inspect_adapter(tmp_path / "missing")
    folder = make_adapter(made_factors(NAMES))
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptFileError, match="cannot be read"):
        inspect_adapter(folder)
    weights.write_bytes(b"\x80\x04" + whole[2:])
    with pytest.raises(AdapterError, match="pickle"):
        inspect_adapter(folder)
    weights.write_bytes(whole)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(CorruptFileError):
        inspect_adapter(folder)
