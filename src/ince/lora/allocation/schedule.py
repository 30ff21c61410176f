"""How many ranks AdaLoRA leaves at a step: all, then a cubic fall, then the target.

    step     0 ……… tinit ……………………… total_step - tfinal ……… total_step
    ranks    all          falls as a cube          target, masks fixed

Source: AdaLoRA, arXiv:2303.10512, section 3.3 and eq. 12; the cube is that of Zhu and Gupta,
arXiv:1710.01878.
"""

from typing import NamedTuple

from ince.lora.config import AdaLoraConfig

__all__ = ["Budget", "budget_at", "last_allocation"]


class Budget(NamedTuple):
    """What a step asks for.

    Attributes:
        ranks: how many are left in all layers together.
        allocate: whether they are chosen anew at this step.
    """

    ranks: int
    allocate: bool


def last_allocation(config: AdaLoraConfig) -> int:
    """The step after which the choice stays."""
    return config.total_step - config.tfinal


def budget_at(step: int, config: AdaLoraConfig, *, num_ranks: int, num_layers: int) -> Budget:
    """The budget at a step, up to the last allocation.

    Args:
        step: counted as by the caller of `update_and_allocate`.
        config: of the adapter.
        num_ranks: with which the layers began, all together.
        num_layers: among which they are shared out.
    """
    if step <= config.tinit:
        return Budget(num_ranks, False)
    last = last_allocation(config)
    # Of an adapter that begins with fewer ranks, none are left to give up.
    target = min(config.target_r * num_layers, num_ranks)
    if step >= last:
        return Budget(target, True)
    left = 1 - (step - config.tinit) / (last - config.tinit)
    return Budget(int((num_ranks - target) * left**3 + target), step % config.deltaT == 0)
