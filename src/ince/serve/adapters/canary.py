"""The canary: before an adapter serves, it is compared with its merged weights on real inputs.

Each layer that it touches gets what the base gives it for a few tokens. There the packed form must
do what the adapter's own tensors say, and change something. Of each kind of layer (rank, scale,
variant and size) one is merged by `ince.lora`, which shares no code with the packed form, and must
give the same. Everything is float32: in 16 bits a wrong scale could hide in the rounding.

Shapes: N rows of the probe, D inputs and O outputs of a layer.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ince.errors import ProofError
from ince.lora.factors import Factors
from ince.lora.layers.adapted import PREFIX
from ince.lora.layers.given import GivenTensors
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.linear import low_rank
from ince.lora.layers.spec import AdapterSpec
from ince.lora.swap.room import Tenant
from ince.ops.lora_segments import add_lora_segments_
from ince.serve.adapters.layers import ServedLayer, ServedModel
from ince.serve.adapters.packed import PackedAdapter

__all__ = ["check_canary"]

# Of the largest change that the adapter makes; and of the largest output, which rounds.
_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 3e-2}
_ROUNDING = 1e-5
_NOTHING = 1e-6  # of the output: what a norm and its rounding leave of no change
_NAME = "canary"


@torch.no_grad()
def check_canary(
    model: ServedModel, adapter: PackedAdapter, tenant: Tenant, *, where: object = None
) -> None:
    """Compare a packed adapter with its definition and with its merged weights.

    Args:
        model: the served base.
        adapter: in its packed form.
        tenant: its tensors as they were read.
        where: the folder, for messages.

    Raises:
        ProofError: it changes nothing, or something else than its merged weights.
    """
    adapter = adapter.on(model.device)
    kinds: set[object] = set()
    changes = False
    for name, spec in tenant.specs.items():
        layer = model.by_name[name]
        x_ND = layer.probe_ND.to(model.device)
        geometry = layer.geometry
        size = (geometry.out_features, geometry.in_features)
        kind = (spec.r, spec.scaling, spec.variant, spec.bias, size)
        is_new = kind not in kinds
        kinds.add(kind)
        if is_new:
            y_NO = F.linear(x_ND, geometry.frozen_weight(torch.float32), _float(geometry.bias))
            expected_NO = _merged(layer, spec, tenant, x_ND)
        elif spec.variant == "lora":
            y_NO = x_ND.new_zeros(x_ND.shape[0], geometry.out_features)
            expected_NO = low_rank(x_ND, _factors(layer, spec, tenant, model.device))
        else:
            continue  # its norm is the base's to know, and one of its kind was merged
        served_NO = y_NO.clone()
        _add(served_NO, x_ND, adapter, layer)
        change = float((expected_NO - y_NO).abs().max())
        apart = float((served_NO - expected_NO).abs().max())
        bound = _TOLERANCES[adapter.block.dtype] * change + _ROUNDING * float(y_NO.abs().max())
        if not apart <= bound:
            raise ProofError(
                "the adapter in the server is not what its merged weights are",
                where=f"{where}: {name}" if where is not None else name,
                got=f"{apart:.3g} apart, of a change of {change:.3g}",
                expected=f"at most {bound:.3g}",
                do="report it with the adapter's config; merged into its base it can be served",
            )
        changes = changes or change > _NOTHING * float(y_NO.abs().max())
    if not changes:
        raise ProofError(
            "the adapter changes nothing: it was never trained, or its scale is 0",
            where=where,
            do="serve the base instead",
        )


def _add(y_NO: Tensor, x_ND: Tensor, adapter: PackedAdapter, layer: ServedLayer) -> None:
    row = torch.from_numpy(adapter.table[layer.index])
    segment = torch.tensor([0, 0, x_ND.shape[0]])
    add_lora_segments_(y_NO, x_ND, [adapter.block], torch.cat([segment, row])[None])


def _merged(layer: ServedLayer, spec: AdapterSpec, tenant: Tenant, x_ND: Tensor) -> Tensor:
    """What the layer gives with the adapter in its weight."""
    own = LoraLayer(layer.module)
    given = GivenTensors(tenant.tensors, may_keep=False, requires_grad=False)
    own.add_adapter(_NAME, spec, given.under(f"{PREFIX}{layer.name}."))
    weight = own.merged_weight(torch.float32, [_NAME])
    if layer.geometry.is_transposed:
        weight = weight.t()
    return F.linear(x_ND, weight, own.merged_bias(torch.float32, [_NAME]))


def _factors(
    layer: ServedLayer, spec: AdapterSpec, tenant: Tenant, device: torch.device
) -> Factors:
    def get(suffix: str) -> Tensor:
        return tenant.tensors[f"{PREFIX}{layer.name}.{suffix}"].float().to(device)

    a, b = layer.geometry.factor_names
    return Factors(get(a), get(b), spec.scaling, get("lora_B.bias") if spec.bias else None)


def _float(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().float()
