"""What Triton's interpreter does otherwise than a GPU, put right.

It cuts float32 off to bfloat16 where compiled code rounds to nearest even, loses bits of
subnormal numbers on the way back, and multiplies matrices of bfloat16 as if their bits were whole
numbers. All three go through torch here.
"""

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

Builder = interpreter.InterpreterBuilder


def _as_bfloat16(data):
    return torch.from_numpy(np.ascontiguousarray(data)).bfloat16().view(torch.int16).numpy()


def _as_float32(data):
    bits = torch.from_numpy(np.ascontiguousarray(data).view(np.int16))
    return bits.view(torch.bfloat16).float().numpy()


@pytest.fixture(autouse=True, scope="session")
def _interpreter_as_gpu():
    cast, dot = Builder.cast_impl, Builder.create_dot

    def cast_rounding(self, src, dst_type):
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            data = _as_bfloat16(src.data).view(np.uint16).reshape(src.data.shape)
            return interpreter.TensorHandle(data, tl.bfloat16)
        if src.dtype.scalar == tl.bfloat16 and dst_type.scalar == tl.float32:
            return interpreter.TensorHandle(_as_float32(src.data), tl.float32)
        return cast(self, src, dst_type)

    def dot_of_bfloat16(self, a, b, d, input_precision, max_num_imprecise_acc):
        if a.dtype.scalar != tl.bfloat16:
            return dot(self, a, b, d, input_precision, max_num_imprecise_acc)
        product = np.matmul(_as_float32(a.data), _as_float32(b.data)) + d.data
        return interpreter.TensorHandle(product, d.dtype.scalar)

    patch = pytest.MonkeyPatch()
    patch.setattr(Builder, "cast_impl", cast_rounding)
    patch.setattr(Builder, "create_dot", dot_of_bfloat16)
    yield
    patch.undo()
