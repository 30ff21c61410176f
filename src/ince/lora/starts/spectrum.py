"""Principal components of rows that arrive in batches, in bounded memory.

Kept are the mean, the total variance and the leading directions with their strengths, twice
as many as asked for: K · D numbers whatever the number of rows. A batch is stacked under what
is kept, and the two are decomposed together.

Source: Ross et al., Incremental Learning for Robust Visual Tracking, IJCV 2008, section 2.2.
"""

import torch
from torch import Tensor

from ince.lora.starts.leading import leading_svd

__all__ = ["RunningSpectrum"]

_KEPT_PER_COMPONENT = 2


class RunningSpectrum:
    """Leading principal components of centered rows.

    Args:
        num_components: K, of interest.
    """

    def __init__(self, num_components: int) -> None:
        self.num_components = num_components
        self.num_rows = 0
        self._total = 0.0
        self._mean_D: Tensor | None = None
        # Directions times strengths: all that a later batch needs to know.
        self._scaled_KD: Tensor | None = None
        self._directions_KD: Tensor | None = None
        self._strengths_K: Tensor | None = None

    @torch.no_grad()
    def add(self, rows_ND: Tensor) -> None:
        """Take N rows in, of any float dtype. None is no news."""
        num_new = rows_ND.shape[0]
        if num_new == 0:
            return
        rows = rows_ND.to(torch.float32)
        # float64 for the mean alone: thousands of rows are summed in it.
        mean_D = rows.mean(dim=0, dtype=torch.float64)
        centered = rows - mean_D.to(torch.float32)
        self._total += float(centered.square().sum(dtype=torch.float64))
        if self._mean_D is None or self._scaled_KD is None:
            stacked, self._mean_D = centered, mean_D
        else:
            # The two means differ, which is variance too: one row more makes up for it.
            weight = self.num_rows * num_new / (self.num_rows + num_new)
            shift_D = mean_D - self._mean_D
            self._total += weight * float(shift_D.square().sum())
            correction = (weight**0.5 * shift_D).to(torch.float32)
            stacked = torch.cat([self._scaled_KD, centered, correction[None]])
            self._mean_D = self._mean_D + shift_D * (num_new / (self.num_rows + num_new))
        self.num_rows += num_new
        _, strengths, directions = leading_svd(stacked, _KEPT_PER_COMPONENT * self.num_components)
        self._strengths_K, self._directions_KD = strengths, directions
        self._scaled_KD = strengths[:, None] * directions

    @property
    def components(self) -> Tensor:
        """Orthonormal rows, strongest first; fewer than K while few rows were seen."""
        if self._directions_KD is None:
            return torch.empty(0, 0)
        return self._directions_KD[: self.num_components]

    @property
    def strengths(self) -> Tensor:
        """Singular values of the centered rows."""
        if self._strengths_K is None:
            return torch.empty(0)
        return self._strengths_K[: self.num_components]

    @property
    def shares(self) -> Tensor:
        """Share of the total variance that each component explains, 0 to 1, on the CPU."""
        squares = self.strengths.square().to("cpu", torch.float64)
        return squares / self._total if self._total > 0 else torch.zeros_like(squares)
