"""`AdaLoraConfig`: layers that share a budget of ranks and give up those that matter least.

Three phases, by steps: up to `tinit` all ranks are trained; then, every `deltaT` steps, the
least important are masked, down to `target_r` on average; in the last `tfinal` the mask stays.

Source of the fields: Hugging Face PEFT; AdaLoRA, arXiv:2303.10512.
"""

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field, StrictBool, StrictFloat

from ince.lora.config.family import LoraFamilyConfig
from ince.lora.config.fields import Count, Finite, Rank, Steps, Weight
from ince.lora.config.options import Clash

__all__ = ["AdaLoraConfig"]

_Beta = Annotated[StrictFloat, Field(gt=0, lt=1)]

_UNUSED_R = 8


class AdaLoraConfig(LoraFamilyConfig):
    """Settings of one AdaLoRA adapter.

    ``y = W x + s / init_r · B(E ∘ A x)``, E: (r, 1) the singular values, masked where a rank
    was given up.

    Options of LoRA that AdaLoRA has no use for are mistakes here; in a file, where PEFT
    writes them without a meaning, they are passed over.

    Raises:
        ConfigError: on construction; every mistake is in `problems`.
    """

    _title: ClassVar[str] = "AdaLoRA"
    peft_type: ClassVar[str] = "ADALORA"
    """The method, as files call it."""

    total_step: Count
    """Steps of the whole training."""
    target_r: Rank = 8
    """Ranks that are left to a layer, on average."""
    init_r: Rank = 12
    """Ranks that a layer starts with."""
    tinit: Steps = 0
    """Steps before the first rank is given up: t_i of the paper."""
    tfinal: Steps = 0
    """Steps after the last one: t_f of the paper."""
    deltaT: Count = 1
    """Steps between two allocations of the budget: Δ_T of the paper."""
    beta1: _Beta = 0.85
    """Smoothing of a weight's sensitivity: β₁ of the paper."""
    beta2: _Beta = 0.85
    """Smoothing of the uncertainty of it: β₂ of the paper."""
    orth_reg_weight: Weight = 0.5
    """Weight, in the loss, of how far A and B are from orthogonal: γ of the paper."""
    lora_alpha: Finite = 8
    """The scale s; zero or less stands for the rank."""
    rank_pattern: dict[str, tuple[StrictBool, ...]] | None = None
    """Which ranks are left, by names of E; written by the training."""

    def scaling(self, r: int, alpha: float) -> float:
        """The factor s of a layer that starts with rank `r`, before it is divided by that."""
        return alpha if alpha > 0 else r

    def _clashes(self) -> Iterator[Clash]:
        yield from super()._clashes()
        if self.tinit >= self.total_step - self.tfinal:
            yield Clash(
                ("total_step", "tinit", "tfinal"),
                f"{self.total_step} steps leave none between tinit={self.tinit} and "
                f"tfinal={self.tfinal}, where ranks are given up",
            )
        if self.target_r > self.init_r:
            yield Clash(
                ("target_r", "init_r"),
                f"{self.target_r} is more than init_r={self.init_r}, and ranks are only given up",
                training=True,
            )
        for name, mask in (self.rank_pattern or {}).items():
            if len(mask) > self.init_r:
                yield Clash(
                    ("rank_pattern", "init_r"),
                    f"{name!r} has {len(mask)} ranks, and init_r is {self.init_r}",
                )
        yield from self._unused()

    def _unused(self) -> Iterator[Clash]:
        """Options of LoRA that AdaLoRA does not have, or that PEFT's passes over."""
        if self.use_dora:
            yield Clash(("use_dora",), "AdaLoRA has no DoRA")
        if self.target_parameters is not None:
            yield Clash(("target_parameters",), "AdaLoRA adapts modules only")
        if self.loftq_config is not None:
            yield Clash(("loftq_config",), "AdaLoRA has a start of its own")
        elif not isinstance(self.init_lora_weights, bool):
            yield Clash(
                ("init_lora_weights",),
                "AdaLoRA has a start of its own",
                "leave it at True",
                training=True,
            )
        if self.r != _UNUSED_R:
            yield Clash(("r",), "is not used by AdaLoRA", "set init_r", training=True)
        for name in ("use_rslora", "lora_bias", "alpha_pattern"):
            if getattr(self, name):
                yield Clash((name,), "is not used by AdaLoRA", "leave it out", training=True)
