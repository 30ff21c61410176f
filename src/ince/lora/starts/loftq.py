"""LoftQ: a start that makes up for what quantizing the base loses.

The base goes into 4 bits, and the adapter begins with the best rank-R repair of the error:
``Q + s · B A ≈ W``. So unlike other starts the model begins nearer to its 16-bit original than
its quantized base does.

How near is a matter of structure: rank 64 of the error of a white 4096² matrix holds 5.9% of
its square, by chance alone. PEFT leaves `s` out of the repair, so there it is right only for
lora_alpha = r; here it holds at any scale.

Shapes: W (O, D), A (R, D), B (O, R).
"""

import torch
from torch import Tensor

from ince.errors import AdapterError
from ince.lora.starts.start import Start, decomposable
from ince.quant import Linear4bit, NF4Config

__all__ = ["loftq", "repair"]


@torch.no_grad()
def loftq(
    weight_OD: Tensor,
    r: int,
    s: float,
    *,
    config: NF4Config,
    num_bits: int = 4,
    num_iterations: int = 1,
    bias: Tensor | None = None,
    name: str = "weight",
) -> Start:
    """Alternate quantization and repair: Q ← NF4(W − s · B A), then B A ← SVD_R(W − Q) / s.

    After one iteration Q is NF4(W), what any base in NF4 holds, and the adapter fits every copy
    of it. After more, Q is a base of its own.

    Args:
        weight_OD: W, of any float dtype; read as float32, not changed.
        r: rank. s: scale of the update.
        config: of the quantization.
        num_bits: PEFT's ``loftq_bits``; 4 is what there is.
        num_iterations: PEFT's ``loftq_iter``.
        bias: of the layer, which goes along.
        name: of the weight, for messages.

    Returns:
        A start whose `quantized` is Q with the bias.

    Raises:
        AdapterError: another number of bits, no iteration; see `decomposable`.

    Source: LoftQ, arXiv:2310.08659, algorithm 1.
    """
    _check_options(num_bits, num_iterations, name)
    weight = decomposable(weight_OD, r, method="LoftQ", name=name)
    layer = Linear4bit.from_weight(weight, bias, config=config, name=name)
    start = repair(weight, layer, r, s, name=name)
    for _ in range(num_iterations - 1):
        rest = torch.addmm(weight, start.b_OR, start.a_RD, alpha=-s)
        layer = Linear4bit.from_weight(rest, bias, config=config, name=name)
        start = repair(weight, layer, r, s, name=name)
    return Start(start.a_RD, start.b_OR, quantized=layer)


@torch.no_grad()
def repair(
    weight_OD: Tensor, quantized: Linear4bit, r: int, s: float, *, name: str = "weight"
) -> Start:
    """The best rank-R ``s · B A`` for ``W − Q``, √S on either side, for a base that is in 4 bits.

    Args:
        weight_OD: W, the original, of any float dtype.
        quantized: Q; it is not changed.
        r: rank. s: scale of the update.
        name: of the weight, for messages.

    Raises:
        AdapterError: see `decomposable`; or W has another shape than Q.
    """
    if tuple(weight_OD.shape) != quantized.weight_shape:
        raise AdapterError(
            "the original weight has another shape than its quantized form",
            where=name,
            got=tuple(weight_OD.shape),
            expected=quantized.weight_shape,
            do="give the checkpoint that the model was quantized from",
        )
    weight = decomposable(weight_OD, r, method="LoftQ", name=name)
    error = weight.to(quantized.packed.device) - quantized.dequantize(torch.float32)
    u_OK, s_K, v_KD = torch.linalg.svd(error, full_matrices=False)
    root_R = (s_K[:r] / s).sqrt()
    return Start(root_R[:, None] * v_KD[:r], u_OK[:, :r] * root_R)


def _check_options(num_bits: int, num_iterations: int, name: str) -> None:
    if num_bits != 4:
        raise AdapterError(
            "LoftQ quantizes to 4 bits here",
            where=name,
            got=f"loftq_bits {num_bits}",
            expected="4",
            do="set loftq_bits to 4",
        )
    if num_iterations < 1:
        raise AdapterError(
            "LoftQ needs at least one iteration",
            where=name,
            got=f"loftq_iter {num_iterations}",
            expected="1 or more",
        )
