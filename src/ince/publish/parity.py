"""Whether two models say the same: logits compared at every position of the same inputs.

Weights that look alike prove nothing about a model that was written, read and run again;
logits do. A merge into 16 bits rounds every weight once more, so that equality to the bit is
not expected: the report says how far apart, and how often the likeliest token differs.

Compare in float32 (`float32_copy`): in bfloat16 a model of thirty layers differs by about
two in a logit from itself computed in another order, and drowns what is to be seen.
"""

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ince.errors import ProofError
from ince.quant import packed_modules

__all__ = [
    "EXACT_LIMIT",
    "ROUNDED_LIMIT",
    "Parity",
    "assert_parity",
    "compare_logits",
    "float32_copy",
]

EXACT_LIMIT = 0.01
"""Largest difference of a logit between an adapter and its merge, both in float32 throughout:
they differ by the order of sums alone."""

ROUNDED_LIMIT = 2.0
"""The same when the merged weights are rounded to 16 bits, and computed with in float32. A wrong
scale or a lost layer moves logits by ten and more."""

# Positions compared at once: float32 logits of a large vocabulary are big.
_POSITIONS_AT_ONCE = 64


@dataclass(frozen=True)
class Parity:
    """How far the logits of two models lie apart, over `num_positions` positions.

    `kl_mean` is the mean over positions of KL(a ‖ b) in nats; `argmax_agreement` the share of
    positions at which both find the same token likeliest.
    """

    max_abs_logit_diff: float
    mean_abs_logit_diff: float
    argmax_agreement: float
    kl_mean: float
    num_positions: int


@torch.no_grad()
def compare_logits(
    model_a: nn.Module, model_b: nn.Module, input_ids_batches: Iterable[Tensor]
) -> Parity:
    """Run both models on the same tokens, in evaluation mode, and compare in float32.

    Args:
        model_a, model_b: causal language models, or `PeftModel`s of such.
        input_ids_batches: (B, L) int64 each, without padding. Each model gets them on its own
            device.

    Raises:
        ProofError: there are no positions to compare, or the vocabularies differ.
    """
    largest = total = kl = 0.0
    num_equal = num_positions = num_logits = 0
    with ExitStack() as stack:
        stack.enter_context(_evaluating(model_a))
        stack.enter_context(_evaluating(model_b))
        for input_ids in input_ids_batches:
            a, b = _logits(model_a, input_ids), _logits(model_b, input_ids)
            if a.shape != b.shape:
                raise ProofError(
                    "the models' logits are of different shapes",
                    got=f"{tuple(a.shape)} and {tuple(b.shape)}",
                )
            for a_NV, b_NV in zip(
                a.split(_POSITIONS_AT_ONCE), b.split(_POSITIONS_AT_ONCE), strict=True
            ):
                x_NV, y_NV = a_NV.float(), b_NV.float().to(a_NV.device)
                difference = (x_NV - y_NV).abs()
                highest = float(difference.max())
                # max() would drop a NaN; no comparison with one holds.
                largest = highest if math.isnan(highest) else max(largest, highest)
                total += float(difference.sum(dtype=torch.float64))
                log_x, log_y = x_NV.log_softmax(-1), y_NV.log_softmax(-1)
                kl += float((log_x.exp() * (log_x - log_y)).sum(dtype=torch.float64))
                num_equal += int((x_NV.argmax(-1) == y_NV.argmax(-1)).sum())
                num_positions += x_NV.shape[0]
                num_logits += x_NV.numel()
            if math.isnan(largest):
                break
    if num_positions == 0:
        raise ProofError("nothing to compare", got="no positions", do="give at least one token")
    return Parity(
        max_abs_logit_diff=largest,
        mean_abs_logit_diff=total / num_logits,
        argmax_agreement=num_equal / num_positions,
        # Never negative but by rounding; a NaN stays one.
        kl_mean=0.0 if kl < 0 else kl / num_positions,
        num_positions=num_positions,
    )


def assert_parity(parity: Parity, limit: float) -> None:
    """Hold `max_abs_logit_diff` to at most `limit`.

    Raises:
        ProofError: it is larger, or not a number.
    """
    if not parity.max_abs_logit_diff <= limit:
        raise ProofError(
            "the two models do not say the same",
            got=f"logits differ by up to {parity.max_abs_logit_diff:.4g}, the likeliest token "
            f"agrees at {parity.argmax_agreement:.2%} of {parity.num_positions} positions",
            expected=f"at most {limit:.4g}",
            do="do not use the merged model; keep the adapter on its base",
        )


def float32_copy(model: nn.Module) -> nn.Module:
    """A copy of `model` that computes in float32; 4-bit weights stay packed."""
    # The way of torch: transformers' own refuses models that it knows to be quantized.
    wide = nn.Module.float(copy.deepcopy(model))
    for module in packed_modules(wide).values():
        module.compute_dtype = torch.float32
    return wide


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _logits(model: nn.Module, input_ids: Tensor) -> Tensor:
    """(B · L, vocabulary)."""
    device = next(model.parameters()).device
    output = cast(Any, model)(input_ids=input_ids.to(device), use_cache=False)
    return cast(Tensor, output.logits).flatten(0, 1)
