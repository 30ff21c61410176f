"""VeRA's updates: vectors of each layer, and random matrices that all layers share.

A file holds the shared matrices, or the seed that they are drawn from. How many inputs a layer
has it does not say: the base does. Source: VeRA, arXiv:2310.11454, eq. 2.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ince.lora.insight.layer_update import (
    BaseShape,
    LayerUpdate,
    Updates,
    check_rank,
    shape_mismatch,
)
from ince.lora.insight.settings import AdapterSettings
from ince.lora.insight.tensor_names import SortedTensors
from ince.lora.layers.projections import Projections

__all__ = ["read_vera"]


def read_vera(
    found: SortedTensors,
    settings: AdapterSettings,
    *,
    where: Path,
    base_shape: BaseShape | None = None,
) -> Updates:
    """Read the update of every layer, as far as file and base tell it.

    Raises:
        AdapterError: shapes that contradict each other or the config.
    """
    updates = Updates()
    widths = {
        module: _vera_width(module, parts["lambda_b"].numel(), base_shape)
        for module, parts in found.parts.items()
    }
    _check_shared(found, where)
    shared = _projections(found, settings, widths)
    if shared is None:
        updates.notes.append(
            "the shared matrices are not in the file (save_projection=False), and how wide they "
            "are is known with the base alone: parameters are counted, give --base for the rest"
        )
        updates.unread = {
            module: sum(tensor.numel() for tensor in parts.values())
            for module, parts in found.parts.items()
        }
        return updates
    a_RD, b_OR = shared
    if not all(widths.values()):
        updates.notes.append(
            "how wide a layer is, VeRA's file does not say: without the base the shared A counts "
            f"whole ({a_RD.shape[1]} inputs), which is right for the widest layers alone"
        )
    for module, parts in found.parts.items():
        b, d = parts["lambda_b"].flatten(), parts["lambda_d"].flatten()
        check_rank(module, d.numel(), settings.r, where)
        width = widths[module] or a_RD.shape[1]
        if d.numel() > min(a_RD.shape[0], b_OR.shape[1]) or b.numel() > b_OR.shape[0]:
            got = f"b of {b.numel()}, d of {d.numel()}, A {tuple(a_RD.shape)}"
            raise shape_mismatch(module, where, got, f"a corner of B {tuple(b_OR.shape)}")
        updates.layers.append(
            LayerUpdate(
                name=module,
                module=module,
                form="linear",
                a_RD=a_RD[: d.numel(), :width],
                b_OR=b_OR[: b.numel(), : d.numel()],
                s=1.0,
                num_parameters=b.numel() + d.numel(),
                rank_scale=d,
                output_scale=b,
            )
        )
    return updates


def _vera_width(module: str, num_out: int, base_shape: BaseShape | None) -> int | None:
    """How many inputs the layer has, as far as the base tells."""
    shape = None if base_shape is None else base_shape(module)
    if shape is None or len(shape) != 2 or num_out not in shape:
        return None
    return shape[1] if shape[0] == num_out else shape[0]


def _check_shared(found: SortedTensors, where: Path) -> None:
    shapes = {part: tuple(shared.shape) for part, shared in found.shared.items()}
    if found.shared and (
        set(shapes) != {"A", "B"} or {len(each) for each in shapes.values()} != {2}
    ):
        got = ", ".join(f"{part} {shape}" for part, shape in sorted(shapes.items()))
        raise shape_mismatch("vera_A and vera_B", where, got, "both, A (r, in) and B (out, r)")


def _projections(
    found: SortedTensors, settings: AdapterSettings, widths: Mapping[str, int | None]
) -> tuple[Tensor, Tensor] | None:
    if set(found.shared) == {"A", "B"}:
        return found.shared["A"], found.shared["B"]
    known = [width for width in widths.values() if width]
    if settings.projection_seed is None or not known or len(known) < len(widths):
        return None
    widest = max(parts["lambda_b"].numel() for parts in found.parts.values())
    drawn = Projections(
        settings.r, max(known), widest, seed=settings.projection_seed, is_saved=False
    )
    return drawn.own()
