"""EVA: A begins with the directions in which a layer's inputs vary most, B with zero.

The inputs are watched while the frozen model reads batches. Nothing but a running spectrum per
layer is kept, and one spectrum serves all layers that read the same tensor, such as q, k and v.
Watching ends when the directions no longer turn, or with the data. PEFT reads the data again
and again until then, which for some data is forever.

What a rank explains decides who gets it: see `ince.lora.starts.ranks`.

Source: EVA, arXiv:2410.07170.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ince.errors import DataError
from ince.lora.starts.ranks import distribute_ranks
from ince.lora.starts.spectrum import RunningSpectrum

__all__ = ["Watched", "input_directions"]


@dataclass(frozen=True)
class Watched:
    """A layer whose inputs are looked at.

    Attributes:
        module: it is called with the inputs first.
        in_features: D. r: its rank before redistribution.
        max_rank: that it may get; at least `r`.
    """

    module: nn.Module
    in_features: int
    r: int
    max_rank: int


@dataclass
class _Group:
    """Layers that read the same tensor; the first of them is watched."""

    spectrum: RunningSpectrum
    names: list[str] = field(default_factory=list)
    turned: Tensor = field(default_factory=lambda: torch.empty(0))
    settled: bool = False

    def add(self, rows_ND: Tensor, tau: float) -> None:
        before_KD = self.spectrum.components
        self.spectrum.add(rows_ND)
        after_KD = self.spectrum.components
        still = torch.zeros(after_KD.shape[0], dtype=torch.bool)
        if before_KD.shape == after_KD.shape and after_KD.numel() > 0:
            cosine_K = (before_KD * after_KD).sum(dim=1).abs()
            still = (cosine_K >= tau).cpu()
        self.turned = ~still


@torch.no_grad()
def input_directions(
    layers: Mapping[str, Watched],
    batches: Iterable[Any],
    read: Callable[[Any], object],
    rows_of: Callable[[str, tuple[Any, ...], Any], Tensor],
    *,
    tau: float,
    whiten: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """A for each layer, (rank, D) float32 with orthonormal rows, ranks redistributed.

    Args:
        layers: by name, in the model's order.
        batches: read once, and not to the end when the directions settle before.
        read: runs the model on a batch.
        rows_of: (layer's name, its arguments, batch) to the rows (N, D) that count.
        tau: directions have settled when all turn by less than this cosine from one batch to
            the next.
        whiten: divide each direction by the root of its singular value, as PEFT does.
        progress: called with (layers settled, layers in all).

    Raises:
        DataError: no batch, a layer that no batch reached, inputs that are not finite, or
            fewer rows than the ranks need.
    """
    groups: dict[str, _Group] = {}
    ranks = {name: layer.max_rank for name, layer in layers.items()}
    budget = sum(layer.r for layer in layers.values())
    num_batches = 0
    for batch in batches:
        num_batches += 1
        with _watching(layers, groups, batch, rows_of, tau):
            read(batch)
        if all(_shares(groups, name, layer).numel() for name, layer in layers.items()):
            shares = {name: _shares(groups, name, layer) for name, layer in layers.items()}
            ranks = distribute_ranks(shares, budget)
        num_settled = _settle(groups, ranks)
        if progress is not None:
            progress(num_settled, len(layers))
        if num_settled == len(layers):
            break
    _check_seen(layers, groups, num_batches)
    shares = {name: _shares(groups, name, layer) for name, layer in layers.items()}
    ranks = distribute_ranks(shares, budget)
    _check_rows(layers, groups, ranks, budget)
    return {name: _directions(groups[name].spectrum, ranks[name], whiten) for name in layers}


@contextmanager
def _watching(
    layers: Mapping[str, Watched],
    groups: dict[str, _Group],
    batch: Any,
    rows_of: Callable[[str, tuple[Any, ...], Any], Tensor],
    tau: float,
) -> Iterator[None]:
    """Inside, what the layers read goes into their spectra. Hooks are gone on leaving."""
    last: list[tuple[object, _Group]] = []

    def watch(name: str, args: tuple[Any, ...]) -> None:
        if name not in groups:
            # Layers that read one tensor are called in a row; it is held so that its
            # identity means something.
            if last and last[0][0] is args[0]:
                groups[name] = last[0][1]
            else:
                widths = [
                    each.max_rank
                    for each in layers.values()
                    if each.in_features == layers[name].in_features
                ]
                groups[name] = _Group(RunningSpectrum(max(widths)))
            groups[name].names.append(name)
        group = groups[name]
        last[:] = [(args[0], group)]
        if group.names[0] != name or group.settled:
            return
        rows_ND = rows_of(name, args, batch)
        if not bool(torch.isfinite(rows_ND).all()):
            raise DataError(
                "the inputs of a layer are not finite",
                where=name,
                got=f"NaN or infinite values in {tuple(rows_ND.shape)}",
                do="check the model and the batch, or run the model in bfloat16 or float32",
            )
        group.add(rows_ND, tau)

    def hook(name: str) -> Callable[..., None]:
        return lambda _, args, kwargs: watch(name, args or tuple(kwargs.values()))

    with ExitStack() as stack:
        for name, layer in layers.items():
            handle = layer.module.register_forward_pre_hook(hook(name), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _shares(groups: Mapping[str, _Group], name: str, layer: Watched) -> Tensor:
    if name not in groups:
        return torch.empty(0)
    spectrum = groups[name].spectrum
    # N centered rows have N - 1 directions.
    return spectrum.shares[: min(layer.max_rank, max(spectrum.num_rows - 1, 0))]


def _settle(groups: Mapping[str, _Group], ranks: Mapping[str, int]) -> int:
    """Mark groups whose directions in use stand still; returns the number of their layers."""
    for group in {id(group): group for group in groups.values()}.values():
        in_use = max(ranks[name] for name in group.names)
        turned = group.turned
        group.settled = turned.numel() >= in_use and not bool(turned[:in_use].any())
    return sum(group.settled for group in groups.values())


def _directions(spectrum: RunningSpectrum, rank: int, whiten: bool) -> Tensor:
    directions = spectrum.components[:rank].clone()
    if whiten:
        strengths = spectrum.strengths[:rank]
        # A direction without variance stays as it is; it has no scale to take away.
        scale = torch.where(strengths > 0, strengths, torch.ones_like(strengths)).sqrt()
        directions /= scale[:, None]
    return directions


def _check_seen(
    layers: Mapping[str, Watched], groups: Mapping[str, _Group], num_batches: int
) -> None:
    if num_batches == 0:
        raise DataError("there is no batch to start EVA from", do="give a dataloader with rows")
    unseen = [name for name in layers if name not in groups or not groups[name].spectrum.num_rows]
    if unseen:
        raise DataError(
            f"{len(unseen)} of {len(layers)} layers saw no row of the data",
            where=", ".join(unseen[:5]),
            got=f"{num_batches} batches",
            do="give more data; look at label_mask_value and the attention mask; or leave these "
            "layers out of target_modules",
        )


def _check_rows(
    layers: Mapping[str, Watched],
    groups: Mapping[str, _Group],
    ranks: Mapping[str, int],
    budget: int,
) -> None:
    if sum(ranks.values()) == budget:
        return
    poorest = min(layers, key=lambda name: groups[name].spectrum.num_rows)
    raise DataError(
        "EVA needs more rows than it has rank to give",
        where=poorest,
        got=f"{groups[poorest].spectrum.num_rows} rows",
        expected=f"more than {layers[poorest].r}",
        do="give more or longer rows, or lower r",
    )
