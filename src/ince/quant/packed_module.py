"""What modules over a packed weight have in common: its parts as buffers, kept as they are.

A cast of the model moves the parts but never changes their types, and a state dict with parts of
other types is refused instead of converted. Neither forward nor mode is here.
"""

from collections.abc import Mapping
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from ince.errors import QuantError
from ince.ops import quantize_4bit, quantize_absmax
from ince.ops.codes import ABSMAX_BLOCKSIZE
from ince.quant.config import NF4Config

__all__ = ["PARTS", "PackedModule", "packed_parts"]

PARTS = ("packed", "absmax", "nested_absmax", "nested_offset")
"""The stored weight. A cast of the model must not touch their precision."""


def packed_parts(weight: Tensor, config: NF4Config, name: str) -> dict[str, Tensor]:
    """Quantize `weight`, of any shape: its parts by name.

    Raises:
        QuantError: the weight is empty, not finite, or of another type; `name` says which.
    """
    try:
        packed, absmax = quantize_4bit(
            weight.detach(),
            config.blocksize,
            config.quant_type,
            scale_search=config.scale_search,
        )
        parts = {"packed": packed, "absmax": absmax}
        if config.double_quant:
            parts |= dict(zip(PARTS[1:], quantize_absmax(absmax), strict=True))
    except QuantError as error:
        raise QuantError(
            error.what, where=name, got=error.got, expected=error.expected, do=error.do
        ) from None
    return parts


class PackedModule(nn.Module):
    """A frozen weight in four bits.

    Args:
        num_weights: in all, n.
        config: of the quantization.
        device: of the buffers. They hold no weight yet.

    Buffers, of n weights in m = ceil(n / blocksize) blocks:
        packed: (ceil(n/2), 1) uint8.
        absmax: (m,) float32; with double quantization uint8, and beside it
        nested_absmax: (ceil(m/256),) float32, and
        nested_offset: () float32.
    """

    packed: Tensor
    absmax: Tensor
    nested_absmax: Tensor | None
    nested_offset: Tensor | None

    def __init__(
        self, num_weights: int, config: NF4Config, device: torch.device | str | None
    ) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = config.torch_dtype

        def buffer(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
            self.register_buffer(name, torch.zeros(shape, dtype=dtype, device=device))

        num_blocks = -(-num_weights // config.blocksize)
        buffer("packed", ((num_weights + 1) // 2, 1), torch.uint8)
        if config.double_quant:
            buffer("absmax", (num_blocks,), torch.uint8)
            buffer("nested_absmax", (-(-num_blocks // ABSMAX_BLOCKSIZE),), torch.float32)
            buffer("nested_offset", (), torch.float32)
        else:
            buffer("absmax", (num_blocks,), torch.float32)
            self.register_buffer("nested_absmax", None)
            self.register_buffer("nested_offset", None)

    @property
    def weight_bytes(self) -> int:
        """Bytes that the packed weight takes: codes and scales."""
        return sum(part.numel() * part.element_size() for part in self.parts().values())

    def parts(self) -> dict[str, Tensor]:
        """The buffers that there are, by name."""
        found = {name: cast("Tensor | None", getattr(self, name)) for name in PARTS}
        return {name: part for name, part in found.items() if part is not None}

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Modules are moved and cast by one function; here it may move, but not cast.
        before = self.parts()
        super()._apply(fn, recurse)
        for name, part in self.parts().items():
            if part.dtype != before[name].dtype:
                setattr(self, name, before[name].to(part.device))
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Copying converts in silence: codes read as floats would be garbage.
        for name, part in self.parts().items():
            stored = state_dict.get(prefix + name)
            if isinstance(stored, Tensor):
                _check_stored(prefix + name, stored, part.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _check_stored(name: str, stored: Tensor, dtype: torch.dtype) -> None:
    if stored.dtype != dtype:
        raise QuantError(
            "a part of a packed weight has the wrong type",
            where=name,
            got=str(stored.dtype),
            expected=str(dtype),
            do="load it into a layer with the config that it was quantized with",
        )
    if dtype.is_floating_point and not stored.is_meta and not bool(stored.isfinite().all()):
        raise QuantError(
            "a scale of a packed weight is not finite",
            where=name,
            got=f"{int((~stored.isfinite()).sum())} of {stored.numel()} scales",
            expected="finite scales",
            do="the file is damaged; get it again, or quantize the model again",
        )
