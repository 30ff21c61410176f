"""The types that a tensor of a GGUF file may have: number, name, and how many bytes a block takes.

A quantized tensor is rows of blocks: so many weights of one row in so many bytes. The table
also holds types that are not expanded here, so that a file with them can be listed and the
error can name them.

Source: the enumeration ggml_type and the block structures of ggml,
github.com/ggml-org/ggml (ggml.h, ggml-common.h).
"""

from dataclasses import dataclass

import torch

__all__ = ["REMOVED_TYPES", "TENSOR_TYPES", "TensorType"]


@dataclass(frozen=True)
class TensorType:
    """How the weights of a tensor are stored.

    Attributes:
        name: as llama.cpp writes it.
        block_weights: weights in a block, which never crosses a row.
        block_bytes: bytes of a block in the file.
        dtype: what the bytes are when they are plain numbers, else None.
    """

    name: str
    block_weights: int
    block_bytes: int
    dtype: torch.dtype | None = None


TENSOR_TYPES: dict[int, TensorType] = {
    0: TensorType("F32", 1, 4, torch.float32),
    1: TensorType("F16", 1, 2, torch.float16),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    9: TensorType("Q8_1", 32, 36),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    15: TensorType("Q8_K", 256, 292),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1, torch.int8),
    25: TensorType("I16", 1, 2, torch.int16),
    26: TensorType("I32", 1, 4, torch.int32),
    27: TensorType("I64", 1, 8, torch.int64),
    28: TensorType("F64", 1, 8, torch.float64),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2, torch.bfloat16),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
    41: TensorType("Q1_0", 128, 18),
}

# ggml took these out again; files of that time need the llama.cpp of that time.
REMOVED_TYPES: dict[int, str] = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}
