"""What a file says of its model beyond what transformers reads reaches the config."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ince.errors import CorruptFileError, ModelReferenceError
from ince.formats.gguf import GGUFFile
from ince.models.gguf_description import empty_model, read_description
from ince.models.gguf_plan import plan_tensors

HEAD = 16


@pytest.fixture
def config_of(tmp_path: Path, write_gguf):
    """A function: the config of a small file that also holds what it is given."""

    def read(**changes):
        file = GGUFFile(write_gguf(tmp_path / "model.gguf", **changes))
        config, _ = read_description(file)
        plan_tensors(file, empty_model(file, config))
        return config

    return read


def frequencies(config) -> torch.Tensor:
    return LlamaRotaryEmbedding(config).inv_freq


def plain() -> LlamaConfig:
    return LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=128)


def test_nothing_is_added_to_a_plain_file(config_of) -> None:
    config = config_of()
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert torch.equal(frequencies(config), frequencies(plain()))
    assert not config.attention_bias


def test_divisors_of_llama_3(config_of) -> None:
    meant = plain()
    meant.rope_parameters = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    divisors = (frequencies(plain()) / frequencies(meant)).numpy()
    assert divisors.max() == 8
    config = config_of(extra={"rope_freqs": ("F32", divisors)})
    torch.testing.assert_close(frequencies(config), frequencies(meant), rtol=1e-6, atol=0)
    assert LlamaRotaryEmbedding(config).attention_scaling == 1
    # The config survives being written and read, and the model computes.
    model = LlamaForCausalLM(config)
    assert torch.isfinite(model(torch.arange(200)[None]).logits).all()


def test_divisors_of_one_say_nothing(config_of) -> None:
    config = config_of(extra={"rope_freqs": ("F32", np.ones(8, np.float32))})
    assert config.rope_parameters["rope_type"] == "default"


def test_factors_for_short_and_long_texts(config_of) -> None:
    short, long = np.full(8, 1.5, np.float32), np.full(8, 4, np.float32)
    config = config_of(
        extra={"rope_factors_short": ("F32", short), "rope_factors_long": ("F32", long)},
        metadata={"rope.scaling.original_context_length": 32, "rope.scaling.attn_factor": 1.25},
    )
    torch.testing.assert_close(frequencies(config), frequencies(plain()) / 1.5)
    assert config.rope_parameters["long_factor"] == [4.0] * 8
    assert config.rope_parameters["original_max_position_embeddings"] == 32
    assert LlamaRotaryEmbedding(config).attention_scaling == 1.25


def test_linear_and_yarn(config_of) -> None:
    linear = config_of(metadata={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0})
    torch.testing.assert_close(frequencies(linear), frequencies(plain()) / 4)
    yarn = config_of(metadata={"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0})
    assert yarn.rope_parameters["rope_type"] == "yarn"
    assert yarn.rope_parameters["original_max_position_embeddings"] == 32
    none = config_of(metadata={"rope.scaling.type": "none"})
    assert none.rope_parameters["rope_type"] == "default"


def test_unknown_stretching_is_not_ignored(config_of) -> None:
    with pytest.raises(ModelReferenceError, match=r"(?s)stretched.*spiral"):
        config_of(metadata={"rope.scaling.type": "spiral", "rope.scaling.factor": 4.0})


def test_biases_are_seen_by_their_tensors(config_of) -> None:
    biases = {
        f"blk.{i}.attn_{kind}.bias": ("F32", np.ones(size, np.float32))
        for i in range(2)
        for kind, size in (("q", 64), ("k", 32), ("v", 32), ("output", 64))
    }
    assert config_of(extra=biases).attention_bias


def test_heads_of_a_size_of_their_own(config_of) -> None:
    wide = {
        f"blk.{i}.attn_{kind}": ("F32", np.ones(shape, np.float32))
        for i in range(2)
        for kind, shape in (
            ("q", (128, 64)),
            ("k", (64, 64)),
            ("v", (64, 64)),
            ("output", (64, 128)),
        )
    }
    metadata = {"attention.key_length": 32, "rope.dimension_count": 32}
    assert config_of(extra=wide, metadata=metadata).head_dim == 32


@pytest.mark.parametrize(
    ("extra", "metadata"),
    [
        ({"rope_freqs": ("F32", np.ones(5000, np.float32))}, {}),
        ({"rope_freqs": ("F32", np.ones((2, 4), np.float32))}, {}),
        ({}, {"rope.scaling.type": "linear", "rope.scaling.factor": float("nan")}),
        ({}, {"rope.scaling.type": "linear", "rope.scaling.factor": "4"}),
        ({}, {"rope.scaling.type": "linear", "rope.scaling.factor": 0.0}),
    ],
)
def test_values_that_are_not_of_their_kind(config_of, extra, metadata) -> None:
    with pytest.raises(CorruptFileError):
        config_of(extra=extra, metadata=metadata)
