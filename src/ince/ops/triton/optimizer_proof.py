"""What the kernels of optimizer steps must show on a device before they are used there.

Steps are taken there and by the reference on the CPU, on a few thousand numbers; they must come
out equal. Importing this needs Triton.
"""

import torch

import ince.ops.reference as reference
from ince.ops.triton.launch_steps import adamw_8bit_step_, lion_8bit_step_

__all__ = ["difference"]

_COUNT = 5000


def difference(device: torch.device) -> str | None:
    """How results on `device` differ from the reference's on the CPU; None where they do not."""
    generator = torch.Generator().manual_seed(0)

    def draw() -> torch.Tensor:
        sizes = 10 ** (3 * torch.randn(_COUNT, generator=generator))
        return torch.randn(_COUNT, generator=generator) * sizes

    parameter, gradient = torch.randn(_COUNT, generator=generator), draw() * 1e-3
    (code1, absmax1), (code2, absmax2) = (
        reference.quantize_8bit(draw(), True),
        reference.quantize_8bit(draw().square(), False),
    )
    adamw = (7, 1e-2, 0.9, 0.999, 1e-8, 0.1)
    lion = (1e-2, 0.9, 0.99, 0.1)
    for dtype in (torch.float32, torch.bfloat16):
        tensors = [parameter.to(dtype), gradient.to(dtype), code1, code2, absmax1, absmax2]
        p, g, c1, c2, a1, a2 = found = [tensor.to(device, copy=True) for tensor in tensors]
        adamw_8bit_step_(p, g, c1, c2, a1, a2, *adamw)
        lion_8bit_step_(p, g, c1, a1, *lion)
        p, g, c1, c2, a1, a2 = expected = [tensor.clone() for tensor in tensors]
        reference.adamw_8bit_step_(p, g, c1, c2, a1, a2, *adamw)
        reference.lion_8bit_step_(p, g, c1, a1, *lion)
        for one, other in zip(found, expected, strict=True):
            if not torch.equal(one.cpu(), other):
                return f"steps of {dtype} give other numbers than the reference"
    return None
