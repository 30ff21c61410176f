"""`pack`: an adapter's tensors laid out for the layers of a served model.

What an adapter is in a layer becomes what the operator multiplies: the scale goes into B, DoRA's
magnitude and norm, and biases, into two vectors. Files are `ince.serve.adapters.load`'s.

Shapes: L layers; D, O and r of one.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ince.errors import AdapterError
from ince.lora.config import LoraConfig
from ince.lora.factors import Factors
from ince.lora.layers.adapted import PREFIX
from ince.lora.layers.spec import AdapterSpec
from ince.lora.mixed.stack import finish_terms
from ince.lora.swap.room import Tenant
from ince.lora.variants.dora import row_norms
from ince.serve.adapters.layers import ServedLayer, ServedModel
from ince.serve.adapters.packed import UNTOUCHED, PackedAdapter

__all__ = ["pack"]

# Parts begin where a vector register may be filled at once, in float32.
_ALIGNMENT = 16
_VARIANTS = ("lora", "dora")


@torch.no_grad()
def pack(
    model: ServedModel,
    tenant: Tenant,
    config: LoraConfig,
    *,
    digest: str,
    dtype: torch.dtype = torch.float32,
    where: object = None,
) -> PackedAdapter:
    """Lay out an adapter's tensors for the layers of `model`, on the CPU.

    Args:
        model: the served base.
        tenant: tensors that fit it, and each layer's spec.
        config: of the file.
        digest: of the files.
        dtype: of the block.
        where: the folder, for messages.

    Raises:
        AdapterError: it touches layers that are not served, or is of another method.
    """
    places = _served(model, tenant, where)
    terms = [_terms(layer, spec, tenant, model.device) for layer, spec in places]
    table = np.full((len(model.layers), len(UNTOUCHED)), UNTOUCHED, dtype=np.int64)
    offset = 0
    for (layer, _), parts in zip(places, terms, strict=True):
        row = [parts[0].shape[0]]
        for part in parts:
            row.append(-1 if part is None else offset)
            offset += 0 if part is None else -(-part.numel() // _ALIGNMENT) * _ALIGNMENT
        table[layer.index] = row
    block = torch.zeros(offset, dtype=dtype)
    for (layer, _), parts in zip(places, terms, strict=True):
        for start, part in zip(table[layer.index, 1:].tolist(), parts, strict=True):
            if part is not None:
                block[start : start + part.numel()].view(part.shape).copy_(part)
    if not bool(torch.isfinite(block.sum(dtype=torch.float32))) and not bool(
        torch.isfinite(block).all()
    ):
        raise AdapterError(
            "the adapter's numbers are too large for its precision in the server",
            where=where,
            got=f"infinite numbers in {dtype}, the scale in them",
        )
    return PackedAdapter(digest, block, table, int(table[:, 0].max()), config)


def _served(
    model: ServedModel, tenant: Tenant, where: object
) -> Sequence[tuple[ServedLayer, AdapterSpec]]:
    found: list[tuple[ServedLayer, AdapterSpec]] = []
    for name, spec in tenant.specs.items():
        if spec.variant not in _VARIANTS:
            raise AdapterError(
                "an adapter of another method than LoRA cannot be served",
                where=where,
                got=spec.variant,
                expected=" or ".join(_VARIANTS),
                do="merge it into its base, and serve that",
            )
        layer = model.by_name.get(name)
        if layer is None:
            raise AdapterError(
                "the adapter touches a layer that cannot have an adapter for each request",
                where=where,
                got=f"{name}: {model.why_not(name)}",
                expected="linear layers that every token passes once",
                do="merge it into its base, and serve that",
            )
        found.append((layer, spec))
    if not found:
        raise AdapterError("the adapter touches no layer", where=where)
    return found


_Parts = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def _terms(layer: ServedLayer, spec: AdapterSpec, tenant: Tenant, device: torch.device) -> _Parts:
    """A (r, D), s Bᵀ (r, O), turn (O,) and shift (O,), on the CPU in float32.

    Args:
        layer: of the base. spec: what the adapter is there.
        tenant: its tensors.
        device: of the base.
    """
    stem = f"{PREFIX}{layer.name}."

    def get(suffix: str) -> Tensor:
        return tenant.tensors[stem + suffix].float()

    geometry = layer.geometry
    a_RD, b_OR = get(geometry.factor_names.a), get(geometry.factor_names.b)
    bias = get("lora_B.bias") if spec.bias else None
    factors = Factors(a_RD, b_OR, spec.scaling, bias)
    base_bias = None
    if spec.variant == "dora":
        on_base = Factors(a_RD.to(device), b_OR.to(device), spec.scaling)
        magnitude = get("lora_magnitude_vector").flatten()
        c_O = magnitude / row_norms(geometry, on_base).to(magnitude.device)
        factors = Factors(a_RD, b_OR, spec.scaling, bias, c_O)
        base_bias = None if geometry.bias is None else geometry.bias.detach().float().cpu()
    turn, shift = finish_terms(factors, base_bias)
    return a_RD, (b_OR * spec.scaling).t(), turn, shift
