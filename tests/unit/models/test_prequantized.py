"""What a folder says of its packed weights; the folders themselves are in test_load."""

from pathlib import Path

import pytest

from ince.errors import InceError, ModelReferenceError
from ince.formats.bitsandbytes_config import config_to_bitsandbytes
from ince.models.prequantized import stored_quantization
from ince.quant import NF4Config

PATH = Path("config.json")


def test_folders_in_floats_say_nothing() -> None:
    assert stored_quantization({}, PATH) is None
    assert stored_quantization({"quantization_config": None}, PATH) is None
    assert stored_quantization({"quantization_config": {}}, PATH) is None


def test_four_bits_of_bitsandbytes_are_read() -> None:
    config = NF4Config(quant_type="fp4", double_quant=False, compute_dtype="float16")
    stored = {"quantization_config": config_to_bitsandbytes(config)}
    assert stored_quantization(stored, PATH) == config


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "compressed-tensors", None, 3])
def test_other_methods_are_refused_by_name(method: object) -> None:
    with pytest.raises(ModelReferenceError, match="quantized already") as caught:
        stored_quantization({"quantization_config": {"quant_method": method, "bits": 4}}, PATH)
    if isinstance(method, str):
        assert caught.value.got == method


@pytest.mark.parametrize(
    "stored",
    [
        "gptq",
        [1],
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "bitsandbytes"},
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf5"},
    ],
)
def test_what_cannot_be_read_is_refused(stored: object) -> None:
    with pytest.raises(InceError):
        stored_quantization({"quantization_config": stored}, PATH)
