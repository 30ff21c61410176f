"""A GGUF file read tensor by tensor is the model that transformers makes of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import GGUF_CONFIG_MAPPING
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from ince.formats.gguf import GGUFFile
from ince.models.gguf_config import complete_config
from ince.models.gguf_plan import plan_tensors
from ince.models.gguf_source import GGUFSource
from ince.models.quiet import quiet_transformers, without_line

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
# Architecture in the file → model type and sizes in transformers.
CASES = {
    "llama": ("llama", SIZES),
    "llama, tied": ("llama", SIZES | {"tie_word_embeddings": True}),
    "llama, biases": ("llama", SIZES | {"attention_bias": True}),
    "llama, all heads": ("llama", SIZES | {"num_key_value_heads": 4}),
    "qwen2": ("qwen2", SIZES),
    "qwen2moe": ("qwen2_moe", SIZES | MOE | {"shared_expert_intermediate_size": 48}),
    "qwen3": ("qwen3", SIZES | {"head_dim": 32}),
    "qwen3moe": ("qwen3_moe", SIZES | MOE | {"head_dim": 32}),
    "phi3": ("phi3", SIZES | {"vocab_size": 32064}),
    "starcoder2": ("starcoder2", SIZES),
    "stablelm": ("stablelm", SIZES),
    "gemma2": ("gemma2", SIZES | {"head_dim": 32}),
    "gemma3": ("gemma3_text", SIZES | {"head_dim": 32}),
    "nemotron": ("nemotron", SIZES),
    "gpt2": (
        "gpt2",
        {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 64, "vocab_size": 96},
    ),
    "bloom": ("bloom", {"hidden_size": 64, "n_head": 4, "n_layer": 2, "vocab_size": 96}),
    "mamba": (
        "mamba",
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "state_size": 8,
            "vocab_size": 96,
        },
    ),
}
# What files say and transformers does not read.
UNREAD = {
    "attention.key_length": "head_dim",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}


def metadata(architecture: str, config) -> dict[str, int | float]:
    mapping = UNREAD | GGUF_CONFIG_MAPPING[config.model_type.removesuffix("_text")]
    found = {}
    for key, attribute in mapping.items():
        value = getattr(config, attribute, None) if isinstance(attribute, str) else None
        if attribute == "rope_theta":
            value = (getattr(config, "rope_parameters", None) or {}).get("rope_theta")
        if type(value) in (int, float):
            found[f"{architecture}.{key}"] = value
    return found


def write(path: Path, architecture: str, config) -> None:
    """A file with random weights under llama.cpp's names, in llama.cpp's shapes."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
    names = get_gguf_hf_weights_map(model, processor)
    writer = GGUFWriter(path, architecture)
    writer.add_token_list([str(i) for i in range(config.vocab_size)])
    for key, value in metadata(architecture, config).items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(key, value)
    if architecture == "gpt2":
        writer.add_context_length(config.n_positions)
    random = np.random.default_rng(0)
    tied = set(model.all_tied_weights_keys)
    for stored, name in names.items():
        if name in tied:
            continue
        shape = wanted[name]
        if "ffn_gate_exps" in stored or "ffn_up_exps" in stored:
            shape = (shape[0], shape[1] // 2, shape[2])
        if "_exps" in stored and not stored.endswith(".weight"):
            stored += ".weight"
        if "ffn_gate_inp_shexp" in stored:
            shape = shape[1:]
        if "ssm_conv1d.weight" in stored:
            shape = (shape[0], shape[2])
        if architecture == "gpt2" and len(shape) == 2 and "_embd" not in stored:
            shape = shape[::-1]
        weights = random.standard_normal(shape, dtype=np.float32)
        if stored.endswith("ssm_a"):
            weights = -np.abs(weights)
        # As in real files: vectors are exact, matrices are rounded.
        writer.add_tensor(stored, weights if len(shape) < 2 else weights.astype(np.float16))
    if "llama" in architecture:  # a table of older files, which is no weight
        writer.add_tensor("rope_freqs.weight", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("case", CASES)
def test_tensors_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    architecture = case.partition(",")[0]
    model_type, sizes = CASES[case]
    config = AutoConfig.for_model(model_type, **sizes)
    path = tmp_path / "model.gguf"
    write(path, architecture, config)
    with quiet_transformers(), without_line("de-quantizing GGUF"):
        expected, info = AutoModelForCausalLM.from_pretrained(
            tmp_path,
            gguf_file=path.name,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
        )
        assert not info["missing_keys"]
        read = AutoConfig.from_pretrained(tmp_path, gguf_file=path.name)
    file = GGUFFile(path)
    complete_config(file, read)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(read)
    plan = plan_tensors(file, model)
    wanted = expected.state_dict()
    assert plan.keys() == wanted.keys() - set(expected.all_tied_weights_keys)
    for dtype in (torch.float32, torch.bfloat16):
        source = GGUFSource(file, tmp_path, plan, dtype=dtype)
        assert sorted(source.order()) == sorted(source.entries)
        for name in plan:
            got = source.read(name)
            assert got.is_contiguous()
            assert torch.equal(got, wanted[name].to(dtype)), name
            assert source.entries[name].shape == tuple(got.shape)
            runs = torch.cat([run.clone() for run in source.runs(name, 1000)])
            assert torch.equal(runs, got.view(-1))
