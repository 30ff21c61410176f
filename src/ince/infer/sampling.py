"""Choose the next token from logits.

Greedy at temperature 0. Otherwise the inverse of the cumulative distribution is read at
a uniform number that belongs to (seed, row, step): what a row says then depends neither
on who shares its batch nor on how large the batch is.

Shapes: B rows, V vocabulary.
"""

from dataclasses import dataclass

import torch

from ince.errors import InputError

__all__ = ["Sampling"]

_ROW_STRIDE = 0x9E3779B97F4A7C15  # odd, so that distinct rows never meet in one seed


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_p: only the likeliest tokens that together reach this probability are drawn.
        seed: of the whole; each row draws from its own sequence.

    Raises:
        InputError: a value out of its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(
                "temperature is out of range", got=self.temperature, expected="0 or more"
            )
        if not 0 < self.top_p <= 1:
            raise InputError("top_p is out of range", got=self.top_p, expected="above 0, at most 1")

    def uniforms(self, row: int, num_steps: int) -> torch.Tensor:
        """(num_steps,) float64 in [0, 1): the numbers of row `row`, the same on every machine."""
        if self.temperature == 0:
            return torch.zeros(num_steps, dtype=torch.float64)
        generator = torch.Generator()
        generator.manual_seed((self.seed + (row + 1) * _ROW_STRIDE) % 2**63)
        return torch.rand(num_steps, dtype=torch.float64, generator=generator)

    def choose(self, logits_BV: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
        """(B,) int64, the next token of each row."""
        if self.temperature == 0:
            return logits_BV.argmax(dim=-1)
        chances_BV = (logits_BV.double() / self.temperature).softmax(dim=-1)
        if self.top_p < 1:
            ordered_BV = chances_BV.sort(dim=-1, descending=True).values
            # A token is kept while those before it have not reached top_p; the first always is.
            before_BV = ordered_BV.cumsum(dim=-1) - ordered_BV
            num_kept_B1 = (before_BV < self.top_p).sum(dim=-1, keepdim=True)
            least_B1 = ordered_BV.gather(-1, num_kept_B1 - 1)
            chances_BV = chances_BV.masked_fill(chances_BV < least_B1, 0)
        # In the order of the vocabulary: by likelihood, rounding would make neighbors
        # change places, and with them the token that a number falls on.
        reached_BV = chances_BV.cumsum(dim=-1)
        total_B1 = reached_BV[:, -1:]
        drawn_B1 = uniforms_B.to(reached_BV)[:, None] * total_B1
        # A product may round up to the total, beyond which there is no token.
        below_B1 = torch.nextafter(total_B1, torch.zeros_like(total_B1))
        return torch.searchsorted(reached_BV, drawn_B1.minimum(below_B1), right=True)[:, 0]
