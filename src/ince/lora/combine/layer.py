"""One layer of a combined adapter: factors in, factors out.

PEFT's semantics, kind by kind:

- ``cat`` stacks the ranks: A's are multiplied by weight · s, B's are taken as they are.
- On factors (``linear``, ``ties``, ``dare_…``, ``magnitude_prune``), A's and B's are each
  multiplied by √|weight · s|, A's with its sign too, and combined apart.
- On the update (``svd``, ``…_svd``), the combined s · B A is decomposed, and split as
  B = U diag(σ), A = V.

Three things are done otherwise, to the same update: ``svd`` is decomposed from stacked
factors, never forming the (O, D) matrix; a result of lower rank than the adapter's is filled
up with zeros, so that the file agrees with its config; and the quantile of `svd_clamp` has
no limit of size.

Shapes: R rank, D in, O out. Results have scale 1.
"""

from collections.abc import Callable, Sequence
from math import ceil, copysign, floor, sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from ince.errors import AdapterError
from ince.lora.combine.arithmetic import mean_of_majority, prune, weighted_sum
from ince.lora.combine.check import KINDS, Combination
from ince.lora.combine.part import Part, checked_parts
from ince.lora.combine.spectrum import thin_svd, widened

__all__ = ["combine_layer"]

_Pair = tuple[Tensor, Tensor]


def combine_layer(
    combination: Combination,
    parts: Sequence[Part],
    *,
    transposed: bool = False,
    generator: torch.Generator | None = None,
) -> _Pair:
    """A (R, D) and B (O, R) of the new adapter in one layer: float32, new tensors, scale 1.

    Args:
        combination: what `check_combination` returned; R is its rank.
        parts: of the adapters that have an update in this layer, in the order in which they
            were named; at least one.
        transposed: the layer keeps its weight as (D, O), as embeddings and transformers'
            Conv1D do. It decides which random number an entry of the dense update gets.
        generator: for DARE's masks, on the factors' device; None is torch's global one.

    Random numbers are drawn part by part for A, then part by part for B; for the dense kinds,
    part by part for the update, row by row as the layer keeps its weight. With layers in the
    order of ``named_modules()`` and float32 adapters these are PEFT's masks, from the same
    state of the generator. (PEFT draws the start of the new adapter before them.)

    Where the result has less than rank R, the last rows of A and columns of B are zeros.

    Raises:
        AdapterError: the parts do not fit each other or the combination, hold values that are
            not finite, or the result would; or `svd_clamp` would leave one constant.
    """
    checked = checked_parts(parts)
    _check_generator(generator, checked[0].a_RD.device)
    kind = KINDS[combination.kind]
    if kind.on == "rank":
        a_RD, b_OR = _stacked(checked)
    elif kind.on == "factors":
        a_RD, b_OR = _mixed_factors(combination, checked, generator)
    elif kind.pruning is None and combination.svd_clamp is None:
        a_RD, b_OR = _thin_sum(combination, checked)
    else:
        a_RD, b_OR = _decomposed(
            combination, _mixed_delta(combination, checked, transposed, generator)
        )
    a_RD, b_OR = _filled(a_RD, b_OR, combination)
    for factor in (a_RD, b_OR):
        _check_finite(factor)
    return a_RD, b_OR


def _stacked(parts: list[Part]) -> _Pair:
    a_RD = torch.cat([part.a_RD * part.weight * part.s for part in parts])
    return a_RD, torch.cat([part.b_OR for part in parts], dim=1)


def _mixed_factors(
    combination: Combination, parts: list[Part], generator: torch.Generator | None
) -> _Pair:
    ranks = [part.rank for part in parts]
    if len(set(ranks)) > 1:
        raise AdapterError(
            f"{combination.kind!r} adds factors entry by entry, and their ranks differ here",
            got=", ".join(f"{part.name or i}: {part.rank}" for i, part in enumerate(parts)),
            expected="one rank in each layer",
            do="use 'svd' or 'cat', or a kind that ends in '_svd'",
        )
    scales = [part.weight * part.s for part in parts]
    roots = [sqrt(abs(scale)) for scale in scales]
    # On one side only: two signs would cancel.
    signed = [copysign(sqrt(abs(scale)), scale) for scale in scales]
    mix = _mixer(combination, generator)
    a_RD = mix([part.a_RD for part in parts], signed)
    return a_RD, mix([part.b_OR for part in parts], roots)


def _mixed_delta(
    combination: Combination,
    parts: list[Part],
    transposed: bool,
    generator: torch.Generator | None,
) -> Tensor:
    deltas = [part.delta().mT if transposed else part.delta() for part in parts]
    mixed = _mixer(combination, generator)(deltas, [part.weight for part in parts])
    return mixed.mT if transposed else mixed


def _mixer(
    combination: Combination, generator: torch.Generator | None
) -> Callable[[list[Tensor], list[float]], Tensor]:
    kind, density = KINDS[combination.kind], combination.density

    def mix(tensors: list[Tensor], weights: list[float]) -> Tensor:
        if kind.pruning is not None and density is not None:
            # In place of the list's entries: a dense update is freed once it is pruned.
            for i, tensor in enumerate(tensors):
                tensors[i] = prune(tensor, kind.pruning, density, generator)
        if kind.vote:
            return mean_of_majority(tensors, weights, combination.majority_sign_method)
        return weighted_sum(tensors, weights)

    return mix


def _thin_sum(combination: Combination, parts: list[Part]) -> _Pair:
    a_RD = torch.cat([part.a_RD for part in parts])
    b_OR = torch.cat([widened(part.b_OR) * (part.weight * part.s) for part in parts], dim=1)
    _check_finite(b_OR)
    svd = thin_svd(a_RD, b_OR, driver=combination.svd_driver)
    r = combination.rank
    b = svd.u_OK[:, :r] * svd.sigma_K[:r]
    return svd.v_KD[:r].to(torch.float32), b.to(torch.float32)


def _decomposed(combination: Combination, delta_OD: Tensor) -> _Pair:
    """The best approximation of a dense update, PEFT's split, clamped when asked for."""
    _check_finite(delta_OD)
    driver = combination.svd_driver if delta_OD.is_cuda else None
    u, sigma, v = torch.linalg.svd(delta_OD, full_matrices=False, driver=driver)
    r = combination.rank
    a_RD, b_OR = v[:r], u[:, :r] * sigma[:r]
    if combination.svd_clamp is None:
        return a_RD, b_OR
    limit = _quantile(torch.cat([b_OR.flatten(), a_RD.flatten()]), combination.svd_clamp)
    if limit < 0:
        raise AdapterError(
            "this svd_clamp would set every entry of both factors to one number",
            got=combination.svd_clamp,
            expected="a quantile whose value is not negative, as 0.99",
        )
    return a_RD.clamp(-limit, limit), b_OR.clamp(-limit, limit)


def _quantile(values_N: Tensor, q: float) -> float:
    """Linear between neighbors, as `torch.quantile`, which stops at 2²⁴ values."""
    position = q * (values_N.numel() - 1)
    low = float(values_N.kthvalue(floor(position) + 1).values)
    high = float(values_N.kthvalue(ceil(position) + 1).values)
    return low + (high - low) * (position - floor(position))


def _filled(a_RD: Tensor, b_OR: Tensor, combination: Combination) -> _Pair:
    missing = combination.rank - a_RD.shape[0]
    if missing < 0:
        raise AdapterError(
            "the factors of this layer have more rank than the combined adapter",
            got=a_RD.shape[0],
            expected=f"at most {combination.rank}",
            do="give check_combination the largest rank of each adapter's layers",
        )
    return F.pad(a_RD, (0, 0, 0, missing)).contiguous(), F.pad(b_OR, (0, missing)).contiguous()


def _check_generator(generator: torch.Generator | None, device: torch.device) -> None:
    if generator is not None and generator.device.type != device.type:
        raise AdapterError(
            "the random generator belongs to another device than the adapters",
            got=str(generator.device),
            expected=str(device),
        )


def _check_finite(tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise AdapterError(
            "the combination is not finite in float32",
            do="use smaller weights, or look at the scales of the adapters",
        )
