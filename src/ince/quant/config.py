"""How a model is quantized: `NF4Config`."""

import importlib
import sys
from typing import Any, Final, Literal, Self, cast

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    field_validator,
    model_validator,
)

from ince.mistakes import name_all_mistakes
from ince.ops import BLOCKSIZES

__all__ = ["QUANT_METHOD", "NF4Config"]

QUANT_METHOD: Final = "ince"
"""What transformers knows ince's quantizer by."""

# Named and not imported: it stands on higher floors, and on transformers.
_QUANTIZER = "ince.models.hf_quantizer"


class NF4Config(BaseModel):
    """Settings of 4-bit NormalFloat quantization.

    >>> NF4Config(blocksize=128).bits_per_weight
    4.063...

    Raises:
        ConfigError: on construction; every mistake is in `problems`.

    Source: QLoRA, arXiv:2305.14314.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )

    quant_type: Literal["nf4", "fp4", "int4"] = "nf4"
    """The sixteen values: NF4; FP4 and INT4 are there to be compared with it."""

    blocksize: int = 64
    """Weights that share a scale: a power of two from 32 to 4096."""

    double_quant: bool = True
    """Keep the scales in 8 bits too."""

    scale_search: bool = False
    """Store the scale of least squared error of each block instead of its largest magnitude. The
    format stays the same: every reader of it reads this too."""

    compute_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Type of the matrix products; a `torch.dtype` is accepted."""

    quantize_head: bool = False
    """Pack the output head as well, unless it shares its weight with the embedding."""

    skip_modules: tuple[str, ...] = Field(default=(), strict=False)
    """Modules left as they are, with all inside: names, or runs of their dotted parts."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """`compute_dtype` as PyTorch has it."""
        return cast(torch.dtype, getattr(torch, self.compute_dtype))

    @property
    def bits_per_weight(self) -> float:
        """Codes and scales of a large tensor, in bits per weight."""
        scale_bits = 8 + 32 / 256 if self.double_quant else 32
        return 4 + scale_bits / self.blocksize

    # ---------------------------------------------------- what transformers asks a config for

    @property
    def quant_method(self) -> str:
        """The name of ince's quantizer in transformers' registry.

        transformers asks for it to look the quantizer up, which is put there now: no import
        has that effect, and no order of imports matters.
        """
        if "transformers" in sys.modules:
            importlib.import_module(_QUANTIZER).register()
        return QUANT_METHOD

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON has them, and the quantizer's name."""
        return {"quant_method": QUANT_METHOD, **self.model_dump(mode="json")}

    def get(self, key: str, default: object = None) -> object:
        """As of `to_dict`; so it asks where a model's config holds this one."""
        if key == "quant_method":
            return self.quant_method
        return self.to_dict().get(key, default)

    # ------------------------------------------------------------------------------- checks

    @model_validator(mode="wrap")
    @classmethod
    def _report_all_mistakes(cls, data: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        return name_all_mistakes(
            cls, data, handler, what="the NF4 config has mistakes", whole="NF4Config"
        )

    @field_validator("blocksize")
    @classmethod
    def _known_blocksize(cls, value: int) -> int:
        if value not in BLOCKSIZES:
            raise ValueError(f"must be one of {', '.join(map(str, BLOCKSIZES))}")
        return value

    @field_validator("compute_dtype", mode="before")
    @classmethod
    def _dtype_by_name(cls, value: object) -> object:
        return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value

    @field_validator("skip_modules", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError("a list of names, not one text")
        return value

    @field_validator("skip_modules")
    @classmethod
    def _names_are_usable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(value):
            raise ValueError("an empty name matches no module")
        return value
