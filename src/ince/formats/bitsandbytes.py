"""Weights in the 4-bit layout of bitsandbytes, in which the field shares quantized models.

A packed weight is several tensors of a checkpoint, named after the weight:

    q_proj.weight                                 codes, two to a byte
    q_proj.weight.absmax                          scales: float32; uint8 with the next two
    q_proj.weight.nested_absmax                   scales of the scales, float32
    q_proj.weight.nested_quant_map                the 256 values of an 8-bit scale
    q_proj.weight.quant_map                       the 16 values of a code
    q_proj.weight.quant_state.bitsandbytes__nf4   what else is needed, as JSON (fp4 likewise)

Here they become a `Linear4bit` and come from one, with equal bits both ways. The values of the
codes are part of ince; maps that say anything else are refused, not followed. Any parameter may
lie so, of any shape: `read_packed` and `write_packed` have no layer in mind.

bitsandbytes itself is not needed, and never imported.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from ince.errors import QuantError
from ince.formats.bitsandbytes_state import (
    STORED_TYPES,
    PackedState,
    decode_state,
    encode_state,
)
from ince.ops.codes import ABSMAX_BLOCKSIZE, code_of, dynamic_map
from ince.quant import Linear4bit, NF4Config

__all__ = [
    "PackedWeight",
    "from_bitsandbytes",
    "packed_names",
    "read_packed",
    "to_bitsandbytes",
    "write_packed",
]

_STATE: Final = ".quant_state.bitsandbytes__"
_PLAIN: Final = (".absmax", ".quant_map")
_NESTED: Final = (".nested_absmax", ".nested_quant_map")
# Machines differ in the last bit of the maps; formats differ by far more.
_MAP_TOLERANCE = 1e-6


@dataclass(frozen=True)
class PackedWeight:
    """A packed weight of any shape, its parts fitting each other.

    packed: (ceil(n/2), 1) uint8; absmax: (m,) float32, or uint8 with nested_absmax
    (ceil(m/256),) float32 and nested_offset () float32.
    """

    packed: Tensor
    absmax: Tensor
    nested_absmax: Tensor | None
    nested_offset: Tensor | None
    blocksize: int
    quant_type: str
    shape: tuple[int, ...]
    dtype: str
    """Type of the weight before it was packed; bitsandbytes expands it to this one."""

    def config(self, compute_dtype: torch.dtype | str) -> NF4Config:
        """The config that this weight was packed with; products are taken in `compute_dtype`."""
        return NF4Config.model_validate(
            {
                "blocksize": self.blocksize,
                "double_quant": self.nested_absmax is not None,
                "compute_dtype": compute_dtype,
                "quant_type": self.quant_type,
            }
        )


def packed_names(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The packed weights among the tensors of a checkpoint: name of a weight → its tensors.

    >>> packed_names(["a.weight", "a.weight.absmax", "a.weight.quant_state.bitsandbytes__nf4"])
    {'a.weight': ('a.weight', 'a.weight.absmax', 'a.weight.quant_state.bitsandbytes__nf4')}
    """
    there = set(names)
    found: dict[str, tuple[str, ...]] = {}
    for state_name in sorted(name for name in there if _STATE in name):
        weight = state_name.partition(_STATE)[0]
        parts = (weight, *(weight + part for part in (*_PLAIN, *_NESTED)), state_name)
        found[weight] = (*found.get(weight, ()), *(p for p in parts if p in there))
    return {weight: tuple(dict.fromkeys(parts)) for weight, parts in found.items()}


def to_bitsandbytes(name: str, layer: Linear4bit) -> dict[str, Tensor]:
    """The tensors of a layer by their names in a checkpoint, its bias included.

    Args:
        name: of the layer, such as ``model.layers.0.self_attn.q_proj``.
        layer: is left as it is; the codes and scales are its buffers, not copies.

    Raises:
        QuantError: bitsandbytes has no such format.
    """
    weight = PackedWeight(
        packed=layer.packed,
        absmax=layer.absmax,
        nested_absmax=layer.nested_absmax,
        nested_offset=layer.nested_offset,
        blocksize=layer.config.blocksize,
        quant_type=layer.config.quant_type,
        shape=layer.weight_shape,
        dtype=layer.config.compute_dtype,
    )
    tensors = write_packed(f"{name}.weight", weight)
    if layer.bias is not None:
        tensors[f"{name}.bias"] = layer.bias.detach()
    return tensors


def from_bitsandbytes(
    name: str,
    tensors: Mapping[str, Tensor],
    *,
    compute_dtype: torch.dtype | str = "bfloat16",
) -> Linear4bit:
    """A layer from its tensors in a checkpoint; they become its buffers.

    Args:
        name: of the layer, such as ``model.layers.0.self_attn.q_proj``.
        tensors: by their names in the checkpoint; others may be among them.
        compute_dtype: in which products are taken, which a config of the whole model says.

    Raises:
        QuantError: a part is missing, does not fit the others, or is of an unknown format.
    """
    weight = read_packed(f"{name}.weight", tensors)
    if len(weight.shape) != 2:
        raise QuantError(
            "not the weight of a linear layer",
            where=f"{name}.weight",
            got=f"shape {weight.shape}",
            expected="(out, in)",
        )
    out_features, in_features = weight.shape
    layer = Linear4bit(
        in_features, out_features, config=weight.config(compute_dtype), device="meta"
    )
    layer.packed = weight.packed
    layer.absmax = weight.absmax
    layer.nested_absmax = weight.nested_absmax
    layer.nested_offset = weight.nested_offset
    bias = tensors.get(f"{name}.bias")
    if bias is not None:
        if tuple(bias.shape) != (out_features,) or not bias.is_floating_point():
            raise QuantError(
                "the bias does not fit its layer",
                where=f"{name}.bias",
                got=f"{bias.dtype}, shape {tuple(bias.shape)}",
                expected=f"floats, shape ({out_features},)",
            )
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def write_packed(name: str, weight: PackedWeight) -> dict[str, Tensor]:
    """The tensors of a packed weight by their names in a checkpoint.

    Raises:
        QuantError: bitsandbytes has no such format.
    """
    offset = None if weight.nested_offset is None else float(weight.nested_offset)
    state = PackedState(weight.quant_type, weight.blocksize, weight.dtype, weight.shape, offset)
    text = encode_state(state)
    tensors = {
        name: weight.packed,
        f"{name}.absmax": weight.absmax,
        f"{name}.quant_map": code_of(weight.quant_type),
    }
    if weight.nested_absmax is not None:
        tensors[f"{name}.nested_absmax"] = weight.nested_absmax
        tensors[f"{name}.nested_quant_map"] = dynamic_map()
    tensors[f"{name}{_STATE}{weight.quant_type}"] = text
    return tensors


def read_packed(name: str, tensors: Mapping[str, Tensor]) -> PackedWeight:
    """Put a packed weight together, all of it checked.

    Args:
        name: of the weight, such as ``model.layers.0.self_attn.q_proj.weight``.
        tensors: by their names in the checkpoint. The codes may be stored as if they were of a
            float type (``bnb_4bit_quant_storage``), whose bytes they then are.

    Raises:
        QuantError: a part is missing, does not fit the others, or is of an unknown format.
    """
    state = _state(name, tensors)
    num_weights = 1
    for size in state.shape:
        num_weights *= size
    num_blocks = -(-num_weights // state.blocksize)
    is_nested = state.nested_offset is not None
    _check_known(name, tensors, is_nested=is_nested)
    packed = _bytes(name, _part(name, "", tensors), (num_weights + 1) // 2)
    scale_type = torch.uint8 if is_nested else torch.float32
    absmax = _checked(f"{name}.absmax", _part(name, ".absmax", tensors), scale_type, num_blocks)
    _check_map(name, ".quant_map", tensors, code_of(state.quant_type))
    nested_absmax = nested_offset = None
    if is_nested:
        _check_map(name, ".nested_quant_map", tensors, dynamic_map())
        nested_absmax = _checked(
            f"{name}.nested_absmax",
            _part(name, ".nested_absmax", tensors),
            torch.float32,
            -(-num_blocks // ABSMAX_BLOCKSIZE),
        )
        nested_offset = torch.tensor(state.nested_offset, dtype=torch.float32, device=packed.device)
    return PackedWeight(
        packed=packed,
        absmax=absmax,
        nested_absmax=nested_absmax,
        nested_offset=nested_offset,
        blocksize=state.blocksize,
        quant_type=state.quant_type,
        shape=state.shape,
        dtype=state.dtype,
    )


def _state(name: str, tensors: Mapping[str, Tensor]) -> PackedState:
    stem = name + _STATE
    found = sorted(key for key in tensors if key.startswith(stem))
    if len(found) != 1 or found[0].removeprefix(stem) not in STORED_TYPES:
        raise QuantError(
            "not a weight packed by bitsandbytes in a known 4-bit format",
            where=name,
            got=", ".join(found) or "no quant_state",
            expected=" or ".join(stem + each for each in STORED_TYPES),
            do="8-bit and other formats are not read; use the original 16-bit model",
        )
    return decode_state(found[0], tensors[found[0]])


def _part(name: str, part: str, tensors: Mapping[str, Tensor]) -> Tensor:
    tensor = tensors.get(name + part)
    if tensor is None:
        raise QuantError(
            "a part of a packed weight is missing",
            where=name + part,
            do="the file is damaged or cut off; get it again",
        )
    return tensor


def _check_known(name: str, tensors: Mapping[str, Tensor], *, is_nested: bool) -> None:
    known = {name + part for part in (*_PLAIN, *(_NESTED if is_nested else ()))}
    surplus = [
        key
        for key in tensors
        if key.startswith(f"{name}.") and key not in known and not key.startswith(name + _STATE)
    ]
    if surplus:
        raise QuantError(
            "a packed weight has parts that do not belong to its format",
            where=name,
            got=", ".join(sorted(surplus)[:5]),
            expected=", ".join(sorted(known)),
            do="the file is damaged, or of a format that ince does not read",
        )


def _bytes(name: str, stored: Tensor, length: int) -> Tensor:
    """The codes as (length, 1) uint8, whatever type they were stored as."""
    num_bytes = stored.numel() * stored.element_size()
    if num_bytes != length:
        raise QuantError(
            "the codes of a packed weight do not fit its shape",
            where=name,
            got=f"{num_bytes} bytes",
            expected=f"{length} bytes",
            do="the file is damaged; get it again",
        )
    if stored.is_complex() or stored.dtype == torch.bool:
        raise QuantError("codes cannot be stored like this", where=name, got=str(stored.dtype))
    return stored.detach().contiguous().flatten().view(torch.uint8).reshape(-1, 1)


def _checked(name: str, part: Tensor, dtype: torch.dtype, length: int) -> Tensor:
    if part.dtype != dtype or part.numel() != length:
        raise QuantError(
            "the scales of a packed weight do not fit it",
            where=name,
            got=f"{part.numel()} of {part.dtype}",
            expected=f"{length} of {dtype}",
            do="the file is damaged; get it again",
        )
    if dtype.is_floating_point and not part.is_meta and not bool(part.isfinite().all()):
        raise QuantError(
            "a scale of a packed weight is not finite",
            where=name,
            got=f"{int((~part.isfinite()).sum())} of {length} scales",
            do="the file is damaged; get it again, or quantize the model again",
        )
    return part.detach().contiguous().flatten()


def _check_map(name: str, part: str, tensors: Mapping[str, Tensor], expected: Tensor) -> None:
    stored = _part(name, part, tensors)
    fits = (
        stored.dtype == torch.float32
        and stored.numel() == expected.numel()
        and (
            stored.is_meta
            or torch.allclose(
                stored.detach().cpu().flatten(), expected, rtol=_MAP_TOLERANCE, atol=1e-12
            )
        )
    )
    if not fits:
        raise QuantError(
            "a packed weight has other values for its codes than its format",
            where=name + part,
            got=f"{stored.numel()} of {stored.dtype}",
            expected=f"the {expected.numel()} values of the format, float32",
            do="the file is damaged, or made by a changed bitsandbytes; quantize the model again",
        )
