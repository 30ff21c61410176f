"""A merged folder is a model that transformers loads, and that says what the adapter said."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config
from transformers import Qwen3ForCausalLM as Qwen3

from ince.errors import OutputError
from ince.lora import LoraConfig, get_peft_model
from ince.publish import assert_parity, compare_logits, merge_to_folder

SIZES = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
IDS = [torch.tensor([[1, 5, 9, 2], [7, 3, 3, 0]]), torch.tensor([[4, 4, 1]])]


def adapted(kind=LlamaForCausalLM, config=LlamaConfig, *, targets="all-linear", **values):
    torch.manual_seed(0)
    base = kind(config(**SIZES, **values)).eval()
    return get_peft_model(base, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_the_folder_loads_and_agrees(tmp_path, kind, tied):
    classes = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen3": (Qwen3, Qwen3Config)}
    model = adapted(*classes[kind], tie_word_embeddings=tied)
    out = merge_to_folder(model, None, tmp_path / "m", torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.dtype == torch.float32
    parity = compare_logits(model, loaded, IDS)
    assert_parity(parity, 1e-5)
    assert parity.argmax_agreement == 1
    assert parity.num_positions == 11
    names = json.loads((out / "config.json").read_text())
    assert names["architectures"] == [type(model.get_base_model()).__name__]


def test_16_bits_by_default(tmp_path):
    model = adapted()
    loaded = AutoModelForCausalLM.from_pretrained(merge_to_folder(model, None, tmp_path / "m"))
    assert loaded.dtype == torch.bfloat16
    wanted = model.merge_and_unload(dtype=torch.bfloat16)
    assert compare_logits(loaded, wanted, IDS).max_abs_logit_diff == 0
    assert model.config.dtype != torch.bfloat16


def test_an_adapted_tied_head_is_written_on_its_own(tmp_path):
    model = adapted(targets=["lm_head"], tie_word_embeddings=True)
    out = merge_to_folder(model, None, tmp_path / "m", torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert_parity(compare_logits(model, loaded, IDS), 1e-5)


def test_shards_and_their_index(tmp_path):
    model = adapted()
    out = merge_to_folder(model, None, tmp_path / "m", torch.float32, shard_bytes=4000)
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0].endswith(f"-of-{len(files):05d}.safetensors")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert index["metadata"]["total_size"] == 4 * sum(p.numel() for p in loaded.parameters())
    assert_parity(compare_logits(model, loaded, IDS), 1e-5)


def test_generation_settings_go_along(tmp_path):
    model = adapted()
    model.generation_config.max_new_tokens = 17
    loaded = AutoModelForCausalLM.from_pretrained(merge_to_folder(model, None, tmp_path / "m"))
    assert loaded.generation_config.max_new_tokens == 17


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        merge_to_folder(adapted(), None, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failed_merge_leaves_nothing(tmp_path):
    model = adapted()
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_B" in n).fill_(3e38)
    with pytest.raises(Exception, match="not finite"):
        merge_to_folder(model, None, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
