"""Dense products in plain PyTorch: sums in float32, rounded once."""

from torch import Tensor
from torch.nn import functional as F

from ince.ops.dense import DENSE_LINEAR

__all__ = ["dense_linear"]


@DENSE_LINEAR.backend("default")
def dense_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See `ince.ops.dense_linear`."""
    wide_bias = None if bias is None else bias.float()
    return F.linear(x.float(), weight.float(), wide_bias).to(x.dtype)
