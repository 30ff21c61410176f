"""From the parts of each layer to its update as matrices.

    LoRA, rsLoRA, DoRA   s · B A
    embedding            s · B A with A over the vocabulary, as a matrix (dim, vocabulary)
    convolution          kernels as columns, (out, in · kernel); groups are spread out
    experts              one update each: A (E · r, in) by experts, B (out, r · E) by ranks
    VeRA                 diag(b) B diag(d) A, from the corner of shared matrices that a layer uses
    AdaLoRA              s · B diag(E) A

Shapes are checked against each other and against the config; the base need not be there. Of
DoRA only s · B A is here: its magnitudes are told beside it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ince.errors import AdapterError
from ince.lora.insight.layer_update import (
    BaseShape,
    Form,
    LayerUpdate,
    Updates,
    check_rank,
    shape_mismatch,
)
from ince.lora.insight.settings import AdapterSettings
from ince.lora.insight.tensor_names import Part, SortedTensors
from ince.lora.insight.vera_updates import read_vera

__all__ = ["read_updates"]

_INSIDE = ".base_layer"
_MAX_NAMES_SHOWN = 3


def read_updates(
    found: SortedTensors,
    settings: AdapterSettings,
    *,
    where: Path,
    base_shape: BaseShape | None = None,
) -> Updates:
    """Read every layer's update.

    Args:
        found: the file's tensors, sorted.
        settings: of its config.
        where: the file, for errors.
        base_shape: tells VeRA how wide a layer is, which its file does not.

    Raises:
        AdapterError: A without B, or shapes that contradict each other or the config.
    """
    _check_complete(found, settings, where)
    if settings.peft_type == "VERA":
        updates = read_vera(found, settings, where=where, base_shape=base_shape)
    else:
        updates = Updates()
        for module, parts in found.parts.items():
            updates.layers += _read_layer(module, parts, found, settings, where)
    updates.layers.sort(key=lambda layer: _depth(layer.name))
    return updates


def _depth(name: str) -> tuple[tuple[int, str], ...]:
    """Sorts layer 10 after layer 9, and an expert after the one before it."""
    parts = name.replace("[", ".").replace("]", "").split(".")
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in parts)


def _check_complete(found: SortedTensors, settings: AdapterSettings, where: Path) -> None:
    needed: Mapping[str, tuple[Part, ...]] = {
        "LORA": ("A", "B"),
        "ADALORA": ("A", "B", "E"),
        "VERA": ("lambda_b", "lambda_d"),
    }
    for wanted in needed[settings.peft_type]:
        lacking = [module for module, parts in found.parts.items() if wanted not in parts]
        if lacking:
            more = len(lacking) - _MAX_NAMES_SHOWN
            there = ", ".join(sorted(found.parts[lacking[0]]))
            raise AdapterError(
                f"{len(lacking)} layers of the adapter have no {wanted.replace('_', ' ')}",
                where=where,
                got=", ".join(lacking[:_MAX_NAMES_SHOWN])
                + (f" and {more} more" if more > 0 else "")
                + f" (only {there})",
                expected=" and ".join(needed[settings.peft_type]) + " in each",
                do="save or download the adapter again",
            )


def _read_layer(
    module: str,
    parts: Mapping[Part, Tensor],
    found: SortedTensors,
    settings: AdapterSettings,
    where: Path,
) -> Iterator[LayerUpdate]:
    a, b = parts["A"], parts["B"]
    owner = module.replace(_INSIDE, "")
    parameters = _parameters_of(owner, settings)
    if parameters and a.ndim == b.ndim == 2:
        yield from _read_experts(module, parts, parameters, settings, where)
        return
    form: Form = "embedding" if module in found.embeddings else "linear"
    if a.ndim > 2:
        form = "convolution"
        a, b = a.flatten(1), _spread(b.flatten(1), a.shape[0])
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        got = f"A {tuple(parts['A'].shape)}, B {tuple(parts['B'].shape)}"
        raise shape_mismatch(module, where, got, "A (r, in) and B (out, r)")
    r = a.shape[0]
    if settings.peft_type == "ADALORA":
        if parts["E"].numel() != r:
            got = f"E of {parts['E'].numel()}, A of rank {r}"
            raise shape_mismatch(module, where, got, "E (r, 1)")
    else:
        check_rank(module, r, settings.rank_of(owner), where)
    for part in ("bias", "magnitude"):
        if part in parts and parts[part].numel() != b.shape[0]:
            got = f"{part} of {parts[part].numel()}, B {tuple(b.shape)}"
            raise shape_mismatch(module, where, got, "one value for each output")
    magnitude, e = parts.get("magnitude"), parts.get("E")
    yield LayerUpdate(
        name=module,
        module=owner,
        form=form,
        a_RD=a,
        b_OR=b,
        s=settings.scale_of(owner, r),
        num_parameters=sum(tensor.numel() for tensor in parts.values()),
        rank_scale=None if e is None else e.flatten(),
        bias=parts.get("bias"),
        magnitude=None if magnitude is None else magnitude.flatten(),
    )


def _spread(matrix: Tensor, r: int) -> Tensor:
    """B (O, r / groups) of a convolution with groups as (O, r), each group over its own ranks."""
    num_groups = r // max(1, matrix.shape[1])
    if num_groups <= 1 or matrix.shape[1] * num_groups != r or matrix.shape[0] % num_groups:
        return matrix
    return torch.block_diag(*matrix.unflatten(0, (num_groups, -1)))


def _parameters_of(owner: str, settings: AdapterSettings) -> list[str]:
    """Names of the parameters of module `owner` that `target_parameters` may mean."""
    found: list[str] = []
    for target in settings.target_parameters:
        module, _, parameter = target.rpartition(".")
        if module and (owner == module or owner.endswith(f".{module}")):
            found.append(parameter)
        elif owner == target or owner.endswith(f".{target}"):
            found.append("")
    return found


def _read_experts(
    module: str,
    parts: Mapping[Part, Tensor],
    parameters: list[str],
    settings: AdapterSettings,
    where: Path,
) -> Iterator[LayerUpdate]:
    a, b = parts["A"], parts["B"]
    owner = module.replace(_INSIDE, "")
    # With several parameters of one module, a file tells them by nesting, not by name.
    only = len(parameters) == 1 and _INSIDE not in module
    name = f"{owner}.{parameters[0]}" if only and parameters[0] else module
    r = settings.rank_of(f"{owner}.{parameters[0]}".rstrip("."))
    if a.shape[0] != b.shape[1] or a.shape[0] % r:
        got = f"A {tuple(a.shape)}, B {tuple(b.shape)} at rank {r}"
        raise shape_mismatch(name, where, got, "A (experts · r, in) and B (out, r · experts)")
    num_experts = a.shape[0] // r
    s = settings.scale_of(f"{owner}.{parameters[0]}".rstrip("."), r)
    a_ERD = a.unflatten(0, (num_experts, r))
    b_OER = b.unflatten(1, (r, num_experts)).transpose(1, 2)
    for expert in range(num_experts):
        yield LayerUpdate(
            name=f"{name}[{expert}]" if num_experts > 1 else name,
            module=owner,
            form="expert" if num_experts > 1 else "linear",
            a_RD=a_ERD[expert],
            b_OR=b_OER[:, expert],
            s=s,
            num_parameters=a_ERD[expert].numel() + b_OER[:, expert].numel(),
            expert=expert if num_experts > 1 else None,
        )
