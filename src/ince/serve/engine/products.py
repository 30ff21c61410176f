"""`few_row_products`: a model's dense layers multiply few rows by ince's own product.

A decoding step has a row for each running request, for which general products of matrices take
up to two and a half times as long (benchmarks/results/serving_ops.md). Layers keep their place,
class and hooks; only what the plain forward computes goes another way, and is given back.

On a processor that emulates bfloat16 and float16, this is also how models in 16 bits are served:
PyTorch's products there take five times as long and more, for any number of rows.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ince.ops import dense_linear, native_dtype
from ince.ops.cpu import instruction_sets

__all__ = ["few_row_products"]

_MOST_ROWS = 96
"""In float32; from there on PyTorch's products are as quick."""


@contextlib.contextmanager
def few_row_products(model: nn.Module) -> Iterator[None]:
    """Inside, dense layers on the CPU multiply few rows by `ince.ops.dense_linear`.

    Forwards inside ask for no gradient. Layers of other classes than `torch.nn.Linear`, on other
    devices, or with a forward of their own already, are left as they are.
    """
    changed: list[nn.Module] = []
    if instruction_sets():
        dtypes = {torch.float32}
        if native_dtype("cpu") == torch.float32:
            dtypes |= {torch.bfloat16, torch.float16}
        for module in model.modules():
            if type(module) is not nn.Linear or "forward" in vars(module):
                continue
            if module.weight.is_cpu and module.weight.dtype in dtypes:
                # Read at every call: a parameter may be exchanged, or moved.
                vars(module)["forward"] = _forward_of(module)
                changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del vars(module)["forward"]


def _forward_of(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    def forward(input: Tensor) -> Tensor:  # noqa: A002  as the layer names it
        weight = module.weight
        if input.dtype == torch.float32 and input.numel() > _MOST_ROWS * input.shape[-1]:
            return F.linear(input, weight, module.bias)
        return dense_linear(input, weight, module.bias)

    return forward
