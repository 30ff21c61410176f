"""Streaming gives the model that transformers' own loader gives, to the bit."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ince.errors import CorruptFileError, InputError, ModelReferenceError, QuantError
from ince.formats.bitsandbytes import to_bitsandbytes
from ince.formats.bitsandbytes_config import config_to_bitsandbytes
from ince.lora.base_identity import base_digest
from ince.models import ResolvedModel, choose_device, load_model, resolve
from ince.models import load as load_module
from ince.ops import native_dtype
from ince.quant import Linear4bit, NF4Config, quantize_model

COMMON = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llama(**changes: object) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**{**COMMON, **changes}))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama tied": lambda: llama(tie_word_embeddings=True),
    "llama untied": lambda: llama(tie_word_embeddings=False),
    "llama with biases and scaled rope": lambda: llama(
        attention_bias=True,
        mlp_bias=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**COMMON)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**COMMON, sliding_window=8)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **COMMON,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention"],
            query_pre_attn_scalar=16,
        )
    ),
}


def save_tokenizer(folder: Path) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *letters])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def save(model: PreTrainedModel, folder: Path, **options: object) -> Path:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too, or a loss of them is not seen
            parameter.copy_(0.2 * torch.randn_like(parameter) + (parameter == 1))
    model.save_pretrained(folder, **options)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(llama(tie_word_embeddings=True), tmp_path / "model")


def logits(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.arange(3, 39).reshape(2, 18)
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_streamed_model_equals_transformers_loader(
    name: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(MODELS[name](), tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    monkeypatch.setattr(load_module, "_load_whole", lambda *_: pytest.fail("was not streamed"))

    ours, _ = load_model(folder, dtype=dtype, device="cpu")

    assert torch.equal(logits(ours), logits(theirs))
    assert type(ours) is type(theirs)
    assert ours.config._attn_implementation == theirs.config._attn_implementation == "sdpa"
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    buffers = dict(theirs.named_buffers())
    assert dict(ours.named_buffers()).keys() == buffers.keys()
    for key, buffer in ours.named_buffers():
        assert torch.equal(buffer, buffers[key])
        assert buffer.dtype == buffers[key].dtype


def test_model_is_frozen_and_in_evaluation_mode(folder: Path) -> None:
    model, tokenizer = load_model(folder, device="cpu")
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {native_dtype("cpu")}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer.pad_token_id == tokenizer.eos_token_id  # it had none
    assert model.name_or_path == str(folder.resolve())
    assert base_digest(model) == resolve(folder).weights_digest


def test_shards_are_streamed(tmp_path: Path) -> None:
    folder = save(llama(tie_word_embeddings=False), tmp_path / "model", max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    told: list[tuple[str, int, int]] = []
    ours, _ = load_model(
        folder, dtype=torch.float32, device="cpu", progress=lambda *step: told.append(step)
    )
    assert torch.equal(logits(ours), logits(theirs))
    stored = sum(
        len(t.untyped_storage())
        for f in folder.glob("*.safetensors")
        for t in load_file(f).values()
    )
    assert told[-1] == ("loading", stored, stored)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_weights_do_not_depend_on_the_file_afterwards(folder: Path) -> None:
    model, _ = load_model(folder, dtype=torch.float32, device="cpu")
    before = logits(model)
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    with weights.open("rb+") as stream:
        stream.seek(size // 2)
        stream.write(b"\xff" * (size - size // 2))
    assert torch.equal(logits(model), before)


def test_equal_copy_of_a_tied_head_is_accepted(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model, _ = load_model(folder, dtype=torch.float32, device="cpu")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_head_that_differs_from_its_embedding_stays_untied(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model, _ = load_model(folder, dtype=torch.float32, device="cpu")
    assert torch.equal(model.lm_head.weight, 2 * model.model.embed_tokens.weight)


def test_experts_that_the_class_fuses_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {**COMMON, "num_local_experts": 2, "num_experts_per_tok": 1}
    folder = save(MixtralForCausalLM(MixtralConfig(**small)), tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    monkeypatch.setattr(load_module, "_load_whole", lambda *_: pytest.fail("was not streamed"))
    ours, _ = load_model(folder, dtype=torch.float32, device="cpu")
    assert torch.equal(logits(ours), logits(theirs))


@pytest.mark.parametrize("name", ["llama tied", "llama with biases and scaled rope", "gemma3"])
def test_quantizing_while_streaming_equals_quantizing_afterwards(name: str, tmp_path: Path) -> None:
    folder = save(MODELS[name](), tmp_path / "model")
    config = NF4Config(skip_modules=("layers.1.self_attn",))
    bfloat16 = torch.bfloat16
    afterwards, _ = load_model(folder, device="cpu", dtype=bfloat16)
    quantize_model(afterwards, config)

    streamed, _ = load_model(folder, device="cpu", dtype=bfloat16, quantization=config)

    assert [type(m) for m in streamed.modules()] == [type(m) for m in afterwards.modules()]
    expected = afterwards.state_dict()
    assert streamed.state_dict().keys() == expected.keys()
    assert all(torch.equal(v, expected[k]) for k, v in streamed.state_dict().items())
    assert torch.equal(logits(streamed), logits(afterwards))
    assert not any(p.requires_grad or p.is_meta for p in streamed.parameters())


@pytest.mark.parametrize("blocksize", [64, 4096])
def test_experts_are_packed_as_they_come(blocksize: int, tmp_path: Path) -> None:
    small = {**COMMON, "num_local_experts": 3, "num_experts_per_tok": 1}
    folder = save(MixtralForCausalLM(MixtralConfig(**small)), tmp_path / "model")
    config = NF4Config(blocksize=blocksize)
    bfloat16 = torch.bfloat16
    afterwards, _ = load_model(folder, device="cpu", dtype=bfloat16)
    quantize_model(afterwards, config)
    streamed, _ = load_model(folder, device="cpu", dtype=bfloat16, quantization=config)
    expected = afterwards.state_dict()
    assert "model.layers.0.mlp.experts.gate_up_proj.packed" in expected
    assert streamed.state_dict().keys() == expected.keys()
    assert all(torch.equal(v, expected[k]) for k, v in streamed.state_dict().items())
    assert torch.equal(logits(streamed), logits(afterwards))


def test_generation_settings_are_read(folder: Path) -> None:
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps({"eos_token_id": [2, 7], "max_new_tokens": 5}))
    model, _ = load_model(folder, device="cpu")
    assert model.generation_config.eos_token_id == [2, 7]


def test_loading_leaves_random_numbers_alone(folder: Path) -> None:
    state = torch.random.get_rng_state()
    load_model(folder, device="cpu")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_resolved_model_is_taken_as_it_is(folder: Path) -> None:
    resolved = ResolvedModel("x", "owner/base", "folder", folder)
    model, _ = load_model(resolved, device="cpu")
    assert model.name_or_path == "owner/base"


@pytest.mark.parametrize("change", ["missing", "surplus", "shape"])
def test_weights_of_another_model_are_refused(folder: Path, change: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "missing":
        del tensors[name]
    elif change == "surplus":
        tensors["model.layers.7.mlp.up_proj.weight"] = tensors[name].clone()
    else:
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelReferenceError, match="up_proj"):
        load_model(folder, device="cpu")


def test_model_without_tokenizer_is_refused(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelReferenceError, match="tokenizer"):
        load_model(folder, device="cpu")


def test_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    folder = save(llama(vocab_size=100), tmp_path / "model")
    with pytest.raises(ModelReferenceError, match="more tokens than the model has embeddings"):
        load_model(folder, device="cpu")


def test_quantized_checkpoint_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelReferenceError, match="quantized already"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", CorruptFileError),
        ('{"model_type": "no_such_architecture"}', ModelReferenceError),
        ('{"model_type": "vit"}', ModelReferenceError),
        ('{"hidden_size": 5}', ModelReferenceError),
        ("[]", ModelReferenceError),
    ],
)
def test_unusable_config_is_refused(folder: Path, text: str, error: type[Exception]) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(error):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "auto1"])
def test_unusable_device_is_refused(device: str) -> None:
    with pytest.raises(InputError):
        choose_device(device)


def test_integer_dtype_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="dtype"):
        load_model(folder, dtype=torch.int8, device="cpu")


PACKED = NF4Config(blocksize=128, compute_dtype="float32")


@pytest.fixture
def packed_folder(tmp_path: Path) -> Path:
    """A folder in the layout of bitsandbytes, in 4 bits."""
    folder = save(llama(tie_word_embeddings=True, mlp_bias=True), tmp_path / "model")
    model, _ = load_model(folder, device="cpu", quantization=PACKED)
    tensors = {n: p for n, p in model.named_parameters() if not n.endswith("proj.bias")}
    for name, layer in model.named_modules():
        if isinstance(layer, Linear4bit):
            tensors |= to_bitsandbytes(name, layer)
    save_file({n: t.detach().clone() for n, t in tensors.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = config_to_bitsandbytes(PACKED)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("asked", [None, PACKED])
def test_packed_folder_keeps_its_codes(asked: NF4Config | None, packed_folder: Path) -> None:
    model, _ = load_model(packed_folder, device="cpu", quantization=asked)
    stored = load_file(packed_folder / "model.safetensors")
    layers = {n: m for n, m in model.named_modules() if isinstance(m, Linear4bit)}
    assert len(layers) == 14
    for name, layer in layers.items():
        assert torch.equal(layer.packed, stored[f"{name}.weight"])
        assert torch.equal(layer.absmax, stored[f"{name}.weight.absmax"])
        assert layer.config == PACKED
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not any(p.requires_grad or p.is_meta for p in model.parameters())
    assert torch.isfinite(logits(model)).all()


def test_packed_model_is_saved_and_loaded_back(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(folder, device="cpu", quantization=PACKED)
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    again, _ = load_model(tmp_path / "again", device="cpu")
    expected = model.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(v, expected[k]) for k, v in again.state_dict().items())


@pytest.mark.parametrize(
    "asked",
    [
        NF4Config(),
        NF4Config(blocksize=128, double_quant=False),
        NF4Config(blocksize=128, quant_type="fp4"),
        NF4Config(blocksize=128, skip_modules=("k_proj",)),
    ],
)
def test_packed_folder_is_not_taken_for_another_packing(
    asked: NF4Config, packed_folder: Path
) -> None:
    with pytest.raises(QuantError, match="packed otherwise"):
        load_model(packed_folder, device="cpu", quantization=asked)


def test_config_that_promises_packed_weights_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = config_to_bitsandbytes(PACKED)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelReferenceError, match="hold none"):
        load_model(folder, device="cpu")


def test_weights_that_are_not_finite_are_named_and_counted(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 5] = torch.nan
    tensors[name][-1, :2] = torch.inf
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QuantError, match="3 of 6144 weights") as caught:
        load_model(folder, device="cpu", quantization=NF4Config())
    assert caught.value.where == name
    assert caught.value.got == "1 NaN, 2 infinite"


def test_kept_weights_that_are_not_finite_are_named_too(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][7] = -torch.inf
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QuantError, match=r"1 of 64 weights.*\n.*model.norm.weight"):
        load_model(folder, device="cpu", quantization=NF4Config())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tensors_that_the_class_keeps_in_float32_stream(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {
        **COMMON,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
    }
    folder = save(Glm4MoeForCausalLM(Glm4MoeConfig(**small)), tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    monkeypatch.setattr(load_module, "_load_whole", lambda *_: pytest.fail("was not streamed"))
    ours, _ = load_model(folder, dtype=dtype, device="cpu")
    expected = theirs.state_dict()
    assert torch.float32 in {t.dtype for t in expected.values()}
    for name, tensor in ours.state_dict().items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("native", [torch.float32, torch.bfloat16])
def test_without_a_type_the_processor_chooses(
    folder: Path, native: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ince.models.load.native_dtype", lambda _: native)
    model, _ = load_model(folder, quantization=NF4Config(), device="cpu")
    layer = model.model.layers[0].mlp.up_proj
    assert (model.dtype, layer.compute_dtype) == (native, native)
    assert layer.config.compute_dtype == "bfloat16"  # what is written stays what it was


def test_a_type_that_was_asked_for_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ince.models.load.native_dtype", lambda _: torch.float32)
    config = NF4Config(compute_dtype="bfloat16")
    model, _ = load_model(folder, quantization=config, device="cpu")
    assert model.model.layers[0].mlp.up_proj.compute_dtype == torch.bfloat16
    model, _ = load_model(folder, dtype=torch.bfloat16, device="cpu")
    assert model.dtype == torch.bfloat16
