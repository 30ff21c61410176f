"""`VeraConfig`: frozen random matrices for all layers, and two trained vectors per layer.

Source of the fields: Hugging Face PEFT; VeRA, arXiv:2310.11454.
"""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictBool, StrictInt

from ince.lora.config.base import PeftConfig
from ince.lora.config.fields import Finite, Rank, Share
from ince.lora.config.options import Clash

__all__ = ["VeraConfig"]


class VeraConfig(PeftConfig):
    """Settings of one VeRA adapter.

    ``y = W x + b ∘ B(d ∘ A x)``, A: (r, in) and B: (out, r) cut from matrices that all layers
    share, d: (r,) and b: (out,) trained. There is no other scale.

    Raises:
        ConfigError: on construction; every mistake is in `problems`.
    """

    _title: ClassVar[str] = "VeRA"
    peft_type: ClassVar[str] = "VERA"
    """The method, as files call it."""

    r: Rank = 256
    """Rows of A; as they are not trained, more than LoRA has."""
    projection_prng_key: Annotated[StrictInt, Field(ge=-(2**63), lt=2**64)] = 0
    """Seed of A and B."""
    save_projection: StrictBool = True
    """Save A and B too: a seed draws the same numbers only with the same generator."""
    vera_dropout: Share = 0.0
    """Share of a layer's inputs that A does not see in a training step."""
    d_initial: Finite = 0.1
    """Where each entry of d starts; b starts at zero."""
    bias: Literal["none", "all", "vera_only"] = "none"
    """Which biases of the base are trained: none, all, or those of adapted layers."""
    init_weights: StrictBool = True
    """False: d normal and b one, so that the adapter is no identity at its start (for tests)."""

    def _clashes(self) -> Iterator[Clash]:
        yield from super()._clashes()
        if self.target_modules == ():
            yield Clash(("target_modules",), "names no module", "leave it out, or say 'all-linear'")
