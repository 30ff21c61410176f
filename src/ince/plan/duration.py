"""Time of a run by what it computes, and money by the hour.

Multiplications and additions of one token, of P weights in linear layers, an adapter of A, a head
of H and T targets of N tokens:

    forward        2 P + 2 A            again where layers are recomputed
    backward       2 P + 4 A            by the input; the weights of a full fine-tuning 2 P more
    head           4 H · T / N          logits and their gradient; 6 H where it learns
    attention      7 · L · Q            of each layer, over documents of L tokens: scores and sums,
                                        half of them forbidden, and two and a half times that back

To these come weights that are expanded from four bits, once for each pass over a layer, and the
numbers that are read and written between products. Where no rate is known of the two they are left
out: an assumed share of a peak has them in it. Moments that a processor keeps in a file are read
and written once a step.
"""

import math
from dataclasses import dataclass

from ince.plan.activations import layer_bytes
from ince.plan.devices import ASSUMED_SHARE, Device
from ince.plan.setup import Setup
from ince.plan.shape import Shape
from ince.plan.weights import filed_bytes

__all__ = ["Rate", "TimePlan", "flops_per_token", "plan_time", "rate_of"]

# Kept activations are written once and read twice or so, and gradients likewise.
_PASSES_OVER_ACTIVATIONS = 6


@dataclass(frozen=True)
class Rate:
    """How fast a device is.

    Attributes:
        flops: of products in a second.
        expanded: weights from four bits to floats in a second; None: in `flops`.
        moved: bytes read or written in a second; None: in `flops`.
        correction: seconds of earlier runs over those planned for them.
        source: where this comes from, in words.
        is_assumed: it rests on an assumed share of a peak.
        filed: bytes written to or read from a file in a second; None: not known, and left out.
    """

    flops: float
    expanded: float | None
    moved: float | None
    correction: float
    source: str
    is_assumed: bool
    filed: float | None = None


def rate_of(device: Device, num_devices: int = 1) -> Rate:
    """What a device of the table is assumed to reach."""
    many = "" if num_devices == 1 else f"{num_devices} × "
    return Rate(
        device.peak_flops * ASSUMED_SHARE * num_devices,
        None,
        None,
        1.0,
        f"{many}{device.name}: {ASSUMED_SHARE:.0%} of {device.peak_flops / 1e12:,.0f} TFLOP/s is "
        f"assumed ({device.source})",
        is_assumed=True,
    )


@dataclass(frozen=True)
class TimePlan:
    """Of one device, or of all together where a run is sharded.

    Attributes:
        tokens_per_second: while steps run.
        seconds: of all tokens; None where it was not said how many.
        num_tokens: those.
        price: of an hour of one device; None where it was not said.
        cost: of the run; None without a number of tokens or a price.
        cost_per_million: of a million tokens; None without a price.
        rate: that this rests on.
    """

    tokens_per_second: float
    seconds: float | None
    num_tokens: int | None
    price: float | None
    cost: float | None
    cost_per_million: float | None
    rate: Rate

    def to_dict(self) -> dict[str, object]:
        """JSON values."""
        return {
            "tokens_per_second": self.tokens_per_second,
            "seconds": self.seconds,
            "num_tokens": self.num_tokens,
            "price_per_hour": self.price,
            "cost": self.cost,
            "cost_per_million_tokens": self.cost_per_million,
            "rate": self.rate.source,
            "rate_is_assumed": self.rate.is_assumed,
        }


def flops_per_token(shape: Shape, setup: Setup) -> dict[str, float]:
    """Floating-point operations of one token of training, by what they are of."""
    counts = shape.counts
    linear = counts.linear
    adapters = 0 if setup.method == "full" else setup.num_trainable(shape)
    passes = 2 if setup.activations == "keep" else 3
    is_full = setup.method == "full"
    learnt = setup.num_learnt / setup.num_tokens
    once = shape.num_layers * setup.length * shape.q_width
    # Below the first layer that learns, nothing is sent back.
    back = 1 - setup.first_layer / shape.num_layers
    return {
        "base": 2.0 * linear * (1 + back * (passes - 1) + is_full),
        "adapters": 2.0 * adapters * (passes + 1),
        "head": (6.0 if is_full else 4.0) * counts.embedding * learnt,
        "attention": once * (2.0 + back * (5.0 + 2.0 * (passes - 2))),
    }


def seconds_per_micro_batch(shape: Shape, setup: Setup, rate: Rate) -> float:
    """Of one forward and backward; the update is small beside it, unless it goes through a file."""
    tokens = setup.num_tokens
    seconds = tokens * sum(flops_per_token(shape, setup).values()) / rate.flops
    passes = 2 if setup.activations == "keep" else 3
    if rate.expanded is not None and setup.method == "qlora" and not setup.is_expanded:
        seconds += passes * shape.counts.linear / rate.expanded
    if rate.moved is not None:
        kept = layer_bytes(shape, setup).kept * (shape.num_layers - setup.first_layer)
        seconds += _PASSES_OVER_ACTIVATIONS * passes / 2 * kept / rate.moved
    if rate.filed is not None and setup.on_cpu:
        # Spread over what a step has of such micro-batches.
        share = tokens / max(tokens, setup.batch_tokens or tokens)
        seconds += share * filed_bytes(shape, setup) / rate.filed
    return seconds * rate.correction


def plan_time(
    shape: Shape,
    setup: Setup,
    rate: Rate,
    *,
    num_tokens: int | None = None,
    price: float | None = None,
) -> TimePlan:
    """How long `num_tokens` take, and what they cost at `price` for an hour of one device.

    Tokens are those of micro-batches as `setup` has them, padding included.
    """
    speed = setup.num_tokens / seconds_per_micro_batch(shape, setup, rate)
    seconds = None if num_tokens is None else num_tokens / speed
    million = None if price is None else 1e6 / speed / 3600 * price * setup.num_devices
    cost = None if million is None or num_tokens is None else million * num_tokens / 1e6
    assert math.isfinite(speed)
    return TimePlan(speed, seconds, num_tokens, price, cost, million, rate)
