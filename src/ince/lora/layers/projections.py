"""`Projections`: the two random matrices that all layers of a VeRA adapter share.

They are drawn once from a seed, on the CPU and in PEFT's order, so that a file without them
means the same on either side; they are never trained. Each layer uses the corner that it
needs. They belong to no module: a model's device and precision do not concern them, and they
are copied to a device when a layer there asks.

Source: VeRA, arXiv:2310.11454, sections 3.1 and 3.2.
"""

import math

import torch
from torch import Tensor

__all__ = ["Projections"]

_KEYS = ("base_model.vera_A", "base_model.vera_B")


class Projections:
    """A (r, in) and B (out, r), float32, for the widest of the layers.

    Args:
        r: rank.
        in_features: of the layer with the most inputs.
        out_features: of the layer with the most outputs; perhaps another.
        seed: of the numbers.
        is_saved: whether the adapter's file holds the matrices, and not the seed alone.
    """

    def __init__(
        self, r: int, in_features: int, out_features: int, *, seed: int, is_saved: bool
    ) -> None:
        self.r, self.in_features, self.out_features = r, in_features, out_features
        self.seed, self.is_saved = seed, is_saved
        self._own: tuple[Tensor, Tensor] | None = None
        self._copies: dict[torch.device, tuple[tuple[int, int], Tensor, Tensor]] = {}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What an adapter's file holds of them, by full name."""
        shapes = ((self.r, self.in_features), (self.out_features, self.r))
        return dict(zip(_KEYS, shapes, strict=True)) if self.is_saved else {}

    def tensors(self) -> dict[str, Tensor]:
        """`shapes`, the tensors themselves: what is written to them is used from then on."""
        return dict(zip(_KEYS, self.own(), strict=True)) if self.is_saved else {}

    def own(self) -> tuple[Tensor, Tensor]:
        """A and B as they are kept, on the CPU; drawn when first asked for."""
        if self._own is None:
            # Made for good, whatever mode the first forward is in.
            with torch.inference_mode(False), torch.no_grad():
                generator = torch.Generator(device="cpu").manual_seed(self.seed)
                a_RD = _uniform(self.r, self.in_features, generator)
                b_OR = _uniform(self.out_features, self.r, generator)
            self._own = a_RD, b_OR
        return self._own

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """A and B on a device, not to be changed."""
        a_RD, b_OR = self.own()
        if device == a_RD.device:
            return a_RD, b_OR
        stamp = a_RD._version, b_OR._version
        found = self._copies.get(device)
        if found is None or found[0] != stamp:
            with torch.inference_mode(False), torch.no_grad():
                found = stamp, a_RD.to(device), b_OR.to(device)
            self._copies[device] = found
        return found[1], found[2]


def _uniform(num_rows: int, fan_in: int, generator: torch.Generator) -> Tensor:
    """Kaiming-uniform (He et al., arXiv:1502.01852): deviation √(2 / fan-in)."""
    # In this order of roundings, so that the numbers are PEFT's to the bit.
    bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(fan_in))
    empty = torch.empty((num_rows, fan_in), dtype=torch.float32, device="cpu")
    return empty.uniform_(-bound, bound, generator=generator)
