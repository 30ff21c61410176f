"""Put a model into evaluation for a moment, and leave it exactly as it was."""

import contextlib
from collections.abc import Iterator

from torch import nn

from ince.quant import expanded

__all__ = ["evaluating"]


@contextlib.contextmanager
def evaluating(model: nn.Module, *, expand: bool = False) -> Iterator[None]:
    """Inside, dropout is off; afterwards every module has the mode it had.

    Args:
        model: any module; its parts may be in different modes.
        expand: keep 16-bit copies of 4-bit weights meanwhile, so that decoding one
            token does not unpack the whole model. Results are equal up to the order of sums.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with expanded(model) if expand else contextlib.nullcontext():
            yield
    finally:
        for module, training in modes:
            module.training = training
