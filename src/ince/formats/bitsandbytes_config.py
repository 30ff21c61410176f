"""The `quantization_config` of a model's ``config.json`` in bitsandbytes' terms, as `NF4Config`.

    {"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4",
     "bnb_4bit_use_double_quant": true, "bnb_4bit_compute_dtype": "bfloat16", …}

What is absent means what Hugging Face says it means: FP4, products in float32, scales not in
8 bits. The block size is not among these; each weight says its own (`bitsandbytes_state`).
"""

from collections.abc import Mapping, Sequence
from typing import Final, cast

from ince.errors import QuantError, did_you_mean
from ince.formats.bitsandbytes_state import STORED_TYPES
from ince.quant import NF4Config

__all__ = ["METHOD", "config_from_bitsandbytes", "config_to_bitsandbytes"]

METHOD: Final = "bitsandbytes"
"""The `quant_method` of such a config."""

_PREFIX = "bnb_4bit_"
_DEFAULTS: Final[Mapping[str, object]] = {
    "bnb_4bit_quant_type": "fp4",
    "bnb_4bit_use_double_quant": False,
    "bnb_4bit_compute_dtype": "float32",
    "bnb_4bit_quant_storage": "uint8",
}
_CHOICES: Final[Mapping[str, tuple[object, ...]]] = {
    "bnb_4bit_quant_type": STORED_TYPES,
    "bnb_4bit_use_double_quant": (True, False),
    "bnb_4bit_compute_dtype": ("bfloat16", "float16", "float32"),
    "bnb_4bit_quant_storage": ("uint8", "int8", "float16", "bfloat16", "float32", "float64"),
}


def config_to_bitsandbytes(
    config: NF4Config, left_out: Sequence[str] | None = None
) -> dict[str, object]:
    """The `quantization_config` that transformers and bitsandbytes read a packed model by.

    Args:
        config: of the model.
        left_out: every linear layer that is not packed, the output head too, since readers take
            all others for packed. None: where there are no `skip_modules`, readers find them
            by themselves.

    Raises:
        QuantError: bitsandbytes has no such 4-bit format.
    """
    if config.quant_type not in STORED_TYPES:
        raise QuantError(
            "bitsandbytes has no such 4-bit format",
            where="quant_type",
            got=config.quant_type,
            expected=", ".join(STORED_TYPES),
            do="quantize with one of these to save the model in its layout",
        )
    names = config.skip_modules or None if left_out is None else left_out
    return {
        "quant_method": METHOD,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": config.quant_type,
        "bnb_4bit_use_double_quant": config.double_quant,
        "bnb_4bit_compute_dtype": config.compute_dtype,
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": None if names is None else list(names),
        "llm_int8_threshold": 6.0,
    }


def config_from_bitsandbytes(
    stored: Mapping[str, object], *, blocksize: int = 64, where: object = "quantization_config"
) -> NF4Config:
    """What a model's ``config.json`` says about its packed weights.

    Args:
        stored: the value of `quantization_config` there.
        blocksize: which is not in it.
        where: for messages, such as the path of the file.

    Raises:
        QuantError: another method, 8-bit weights, or a value that bitsandbytes does not have.
    """
    method = stored.get("quant_method", METHOD)
    if method != METHOD:
        raise QuantError(
            "the weights are quantized by another method than ince reads",
            where=where,
            got=method,
            expected=METHOD,
            do="use the original model that this one was made from",
        )
    if stored.get("load_in_8bit"):
        raise QuantError(
            "the weights are in 8 bits (LLM.int8), which ince does not read",
            where=where,
            got="load_in_8bit",
            expected="load_in_4bit",
            do="use the original model that this one was made from",
        )
    if stored.get("load_in_4bit") is not True:
        raise QuantError(
            "the config of a quantized model does not say in how many bits",
            where=where,
            got=f"load_in_4bit: {stored.get('load_in_4bit')!r}",
            expected="load_in_4bit: true",
        )
    for key in stored:
        if key.startswith(_PREFIX) and key not in _DEFAULTS:
            raise QuantError(
                "the config of a quantized model has an unknown setting",
                where=where,
                got=key,
                expected=", ".join(_DEFAULTS),
                do=did_you_mean(key, _DEFAULTS),
            )
    values = {key: _value(stored, key, where) for key in _DEFAULTS}
    return NF4Config.model_validate(
        {
            "quant_type": values["bnb_4bit_quant_type"],
            "blocksize": blocksize,
            "double_quant": values["bnb_4bit_use_double_quant"],
            "compute_dtype": values["bnb_4bit_compute_dtype"],
            "skip_modules": _names(stored.get("llm_int8_skip_modules"), where),
        }
    )


def _value(stored: Mapping[str, object], key: str, where: object) -> object:
    value = stored.get(key)
    if value is None:
        return _DEFAULTS[key]
    if isinstance(value, str):
        value = value.removeprefix("torch.")
    known = _CHOICES[key]
    if not any(type(value) is type(each) and value == each for each in known):
        raise QuantError(
            "the config of a quantized model has an unknown value",
            where=f"{where}: {key}",
            got=value,
            expected=", ".join(map(str, known)),
        )
    return value


def _names(value: object, where: object) -> tuple[str, ...]:
    names = cast("Sequence[object]", value) if isinstance(value, list | tuple) else None
    if value is not None and (
        names is None or not all(isinstance(name, str) and name for name in names)
    ):
        raise QuantError(
            "the config of a quantized model has an unknown value",
            where=f"{where}: llm_int8_skip_modules",
            got=value,
            expected="a list of names",
        )
    return tuple(cast("Sequence[str]", names or ()))
