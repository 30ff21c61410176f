"""The parts of a config that are configs: of starts that read data, and of the run.

Names, defaults and meanings are those of PEFT.
"""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt

from ince.lora.config.fields import Count, Weight
from ince.lora.config.options import Clash, Options

__all__ = ["EvaConfig", "LoftQConfig", "LoraGAConfig", "LoraRuntimeConfig"]


class LoftQConfig(Options):
    """How LoftQ alternates between quantizing the base and fitting what that lost.

    Raises:
        ConfigError: on construction; every mistake is in `problems`.

    Source: arXiv:2310.08659, algorithm 1.
    """

    _title: ClassVar[str] = "LoftQ"

    loftq_bits: Literal[2, 4, 8] = 4
    """Bits of a weight of the quantized base."""
    loftq_iter: Count = 1
    """Rounds of quantizing and of the decomposition of what is left: T of the paper."""


class EvaConfig(Options):
    """How EVA draws A from what the layers see, and spreads ranks over them.

    Raises:
        ConfigError: on construction; every mistake is in `problems`.

    Source: arXiv:2410.07170.
    """

    _title: ClassVar[str] = "EVA"

    rho: Annotated[Weight, Field(ge=1)] = 2.0
    """A layer gets at most rho · r ranks; 1 leaves the ranks as they are."""
    tau: Annotated[StrictInt | StrictFloat, Field(ge=0, le=1)] = 0.99
    """A direction is found once its cosine between two batches is above this."""
    use_label_mask: StrictBool = True
    """Look only at positions that are trained on."""
    label_mask_value: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] = -100
    """The label of positions that are not."""
    whiten: StrictBool = False
    """Divide each direction by the root of its singular value."""
    adjust_scaling_factors: StrictBool = True
    """Change alphas with the ranks, so that the scale of a layer stays what it was."""


class LoraGAConfig(Options):
    """How LoRA-GA draws A and B from the singular vectors of the first gradient.

    Raises:
        ConfigError: on construction; every mistake is in `problems`.

    Source: arXiv:2407.05000.
    """

    _title: ClassVar[str] = "LoRA-GA"

    direction: Literal["ArBr", "A2rBr", "ArB2r", "random"] = "ArB2r"
    """Which of the first 2r singular vectors A and B get: every other one (ArBr), A the
    second half and B the first (A2rBr), A the first and B the second (ArB2r), or any."""
    scale: Literal["stable", "weight_svd", "gd_scale", "unit"] = "stable"
    """Size of the start: by `stable_gamma`, by the weight's singular values, by 1/s, or of
    length one."""
    stable_gamma: Count = 16
    """γ of the scale "stable": a larger one starts smaller, by its root."""


class LoraRuntimeConfig(Options):
    """What concerns the run alone, and is not saved. Known so that PEFT's programs run.

    Raises:
        ConfigError: on construction; every mistake is in `problems`.
    """

    _title: ClassVar[str] = "runtime"

    ephemeral_gpu_offload: StrictBool = False
    """Move parts of a layer to the GPU for the time of an operation. Not built: only off."""

    def _clashes(self) -> Iterator[Clash]:
        if self.ephemeral_gpu_offload:
            yield Clash(
                ("ephemeral_gpu_offload",),
                "True is not supported: a layer is computed on where its weights lie",
                "leave it at False",
            )
