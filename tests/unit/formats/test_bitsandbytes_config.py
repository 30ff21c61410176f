"""A model's `quantization_config` in bitsandbytes' terms, both ways."""

import pytest

from ince import NF4Config
from ince.errors import QuantError
from ince.formats.bitsandbytes_config import config_from_bitsandbytes, config_to_bitsandbytes

STORED = {"quant_method": "bitsandbytes", "load_in_4bit": True}


@pytest.mark.parametrize(
    "config",
    [
        NF4Config(),
        NF4Config(quant_type="fp4", double_quant=False, compute_dtype="float16"),
        NF4Config(skip_modules=("lm_head", "model.layers.0.mlp")),
        NF4Config(blocksize=128),
    ],
)
def test_what_is_written_is_read(config):
    stored = config_to_bitsandbytes(config)
    assert config_from_bitsandbytes(stored, blocksize=config.blocksize) == config


def test_what_is_absent_means_what_hugging_face_says():
    assert config_from_bitsandbytes(STORED) == NF4Config(
        quant_type="fp4", double_quant=False, compute_dtype="float32"
    )
    assert config_from_bitsandbytes({"load_in_4bit": True}).quant_type == "fp4"
    absent = dict.fromkeys(("bnb_4bit_quant_type", "llm_int8_skip_modules"))
    assert config_from_bitsandbytes(STORED | absent).quant_type == "fp4"


def test_a_format_that_bitsandbytes_does_not_have_is_not_written():
    with pytest.raises(QuantError, match="bitsandbytes has no such 4-bit format"):
        config_to_bitsandbytes(NF4Config(quant_type="int4"))


def test_dtypes_are_read_as_torch_prints_them():
    config = config_from_bitsandbytes(STORED | {"bnb_4bit_compute_dtype": "torch.bfloat16"})
    assert config.compute_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "gptq"}, "another method"),
        ({"quant_method": 3}, "another method"),
        ({"load_in_8bit": True, "load_in_4bit": False}, "8 bits"),
        ({"load_in_8bit": True}, "8 bits"),
        ({"load_in_4bit": False}, "does not say in how many bits"),
        ({"load_in_4bit": "yes"}, "does not say in how many bits"),
        ({"bnb_4bit_quant_type": "int4"}, "unknown value"),
        ({"bnb_4bit_quant_type": ["nf4"]}, "unknown value"),
        ({"bnb_4bit_use_double_quant": 1}, "unknown value"),
        ({"bnb_4bit_compute_dtype": "float8"}, "unknown value"),
        ({"bnb_4bit_quant_storage": "complex64"}, "unknown value"),
        ({"bnb_4bit_rotation": "hadamard"}, "unknown setting"),
        ({"llm_int8_skip_modules": "lm_head"}, "unknown value"),
        ({"llm_int8_skip_modules": [3]}, "unknown value"),
        ({"llm_int8_skip_modules": [""]}, "unknown value"),
    ],
)
def test_what_cannot_be_read_is_refused(change, message):
    with pytest.raises(QuantError, match=message):
        config_from_bitsandbytes(STORED | change)
