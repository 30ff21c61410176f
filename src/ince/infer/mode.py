"""Put a model into evaluation for a moment, and leave it exactly as it was."""

import contextlib
from collections.abc import Iterator

from torch import nn

from ince.heap import give_back, is_out_of_memory
from ince.quant import expanded

__all__ = ["evaluating"]


@contextlib.contextmanager
def evaluating(model: nn.Module, *, expand: bool = False) -> Iterator[None]:
    """Inside, dropout is off; afterwards every module has the mode it had.

    Args:
        model: any module; its parts may be in different modes.
        expand: keep 16-bit copies of 4-bit weights meanwhile, so that decoding one
            token does not unpack the whole model. Results are equal up to the order of sums.
            Where memory for them is refused, there are none.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with contextlib.ExitStack() as held:
            if expand and not _expand(model, held):
                give_back()
            yield
    finally:
        for module, training in modes:
            module.training = training


def _expand(model: nn.Module, held: contextlib.ExitStack) -> bool:
    try:
        held.enter_context(expanded(model))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
