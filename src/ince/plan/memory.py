"""Bytes by component at each moment of a step, the peak, and when it comes.

A run holds its weights, adapters and moments all the time. In a step come and go: activations,
which pile up forward and are used up backward; logits; gradients, which pile up backward; and what
products are worked in. So six moments are looked at, and the largest is the peak:

    loaded            before the first step
    forward           the last layer has been computed
    loss              logits, or a part of them, beside all activations
    backward, last    the last layer's backward: all activations, and the most that is worked in
    backward, first   the first layer's: its own activations, and all gradients
    update            gradients and the optimizer's work; no activations
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ince.plan.activations import LayerBytes, layer_bytes, logit_bytes, logit_chunk
from ince.plan.setup import Setup
from ince.plan.shape import Shape
from ince.plan.weights import held_moments, weight_parts

__all__ = ["COMPONENTS", "MemoryPlan", "Moment", "Overheads", "fill_pages", "plan_memory"]

COMPONENTS: Mapping[str, str] = {
    "codes": "weights, 4-bit codes",
    "scales": "weights, scales",
    "linear": "weights, in floats",
    "expanded": "weights, a copy in floats",
    "embedding": "embedding",
    "head": "output head",
    "norms": "norms and biases",
    "master": "weights, a master copy",
    "adapters": "adapters",
    "average": "average of what learns",
    "moments": "optimizer moments",
    "gradients": "gradients",
    "activations": "activations",
    "logits": "logits and loss",
    "dequantization": "weights expanded for a product",
    "work": "backward and update buffers",
    "fragmentation": "allocator",
    "first_use": "libraries, at their first use",
    "framework": "framework",
}
"""Keys of a moment, in the order of a table, and what they are called."""

_GPU_FRAMEWORK_BYTES = 600 * 2**20
_CPU_FRAMEWORK_BYTES = 510 * 2**20
# Buffers of libraries, and small objects, that a process's first step makes: measured, with blocks
# of activations in the heap and apart from it.
_CPU_FIRST_USE_BYTES = 64 * 2**20
_COMPACT_FIRST_USE_BYTES = 16 * 2**20
# glibc maps what is as large as this apart from its heap, where it leaves no hole.
_MAPPED_BYTES = 32 * 2**20
# Of a byte of small tensors that stay from step to step, what goes into holes: measured.
_INTO_HOLES = 0.6


@dataclass(frozen=True)
class Overheads:
    """What no formula gives.

    Attributes:
        framework_bytes: of interpreter, libraries, tokenizer, or of a GPU's context.
        first_use_bytes: of what becomes resident in the first step and is no tensor.
        fragmentation: of an allocator, as a share of what comes and goes in a step.
        source: where the two come from, in words.
    """

    framework_bytes: int
    first_use_bytes: int
    fragmentation: float
    source: str

    @classmethod
    def assumed(cls, setup: Setup) -> "Overheads":
        """Where no run has been measured on the device yet."""
        source = "assumed: no run on such a device has been measured here yet"
        if setup.on_cpu:
            first_use = _COMPACT_FIRST_USE_BYTES if setup.has_compact_heap else _CPU_FIRST_USE_BYTES
            return cls(_CPU_FRAMEWORK_BYTES, first_use, 0.02, source)
        return cls(_GPU_FRAMEWORK_BYTES, 0, 0.04, source)

    @classmethod
    def none(cls) -> "Overheads":
        """For figures that count tensors alone."""
        return cls(0, 0, 0.0, "left out")


@dataclass(frozen=True)
class Moment:
    """Bytes by component at one moment; keys are those of `COMPONENTS`."""

    name: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class MemoryPlan:
    """Of one device.

    Attributes:
        moments: in the order of a step.
        below: bytes of moments that live on a lower tier, and of activations that wait there.
        num_trainable: parameters that learn.
        overheads: what was added to the formulas.
    """

    moments: tuple[Moment, ...]
    below: Mapping[str, int]
    num_trainable: int
    overheads: Overheads

    @property
    def peak(self) -> Moment:
        """The moment at which most is held; the earliest of several."""
        return max(self.moments, key=lambda each: each.total)

    @property
    def loaded(self) -> Moment:
        """Before the first step."""
        return self.moments[0]

    def to_dict(self) -> dict[str, object]:
        """JSON values."""
        peak = self.peak
        return {
            "peak_bytes": peak.total,
            "peak_at": peak.name,
            "parts": dict(peak.parts),
            "moments": {each.name: each.total for each in self.moments},
            "loaded_bytes": self.loaded.total,
            "below": dict(self.below),
            "num_trainable": self.num_trainable,
            "overheads": self.overheads.source,
        }


def plan_memory(shape: Shape, setup: Setup, overheads: Overheads | None = None) -> MemoryPlan:
    """Bytes of training `shape` as `setup` says, on each device.

    Args:
        shape: of the model.
        setup: of the run.
        overheads: of the device; None: those assumed.
    """
    if overheads is None:
        overheads = Overheads.assumed(setup)
    held, below = _held(shape, setup)
    layer = layer_bytes(shape, setup)
    loss, loss_kept = logit_bytes(shape, setup)
    kept, below_activations = _kept(shape, setup, layer.kept, layer.input)
    if below_activations:
        below = {**below, "activations": below_activations}
    stream = layer.input  # the residual stream, or its gradient
    gradients = _gradients(shape, setup)
    of_layer = gradients // max(1, shape.num_layers)
    gathered = _gathered(shape, setup)
    expanded = max(layer.expanded, gathered)
    recomputed = 0 if setup.activations == "keep" else layer.kept
    in_heap = setup.on_cpu and not setup.has_compact_heap
    holes = _holes(shape, setup, layer, held["moments"]) if in_heap else 0
    first_kept = layer.input + recomputed if recomputed else layer.kept
    moments = (
        ("loaded", {}),
        (
            "forward",
            {
                "activations": kept + recomputed,
                "work": stream + setup.num_tokens * shape.mlp * setup.value_bytes,
                "dequantization": min(expanded, _SLAB_BYTES) if setup.on_cpu else expanded,
                "holes": holes,
            },
        ),
        ("loss", {"activations": kept + stream, "logits": loss, "holes": holes}),
        (
            "backward, last",
            {
                "activations": kept + recomputed,
                "logits": loss_kept,
                "work": layer.work,
                "dequantization": expanded,
                "gradients": of_layer,
                "holes": holes,
            },
        ),
        (
            "backward, first",
            {
                # A processor's heap has kept the room of those before.
                "activations": kept + recomputed if recomputed and in_heap else first_kept,
                "work": layer.work,
                "dequantization": expanded,
                "gradients": gradients,
                "holes": holes,
            },
        ),
        ("update", {"gradients": gradients, "work": _update_work(shape, setup, gradients)}),
    )
    return MemoryPlan(
        tuple(_moment(name, held, parts, overheads) for name, parts in moments),
        below,
        setup.num_trainable(shape),
        overheads,
    )


# Of weights that a processor's product expands at a time, as `ince.ops.cpu.linear` does.
_SLAB_BYTES = 1 << 25


def fill_pages(
    shape: Shape, setup: Setup, limit_bytes: int | None, overheads: Overheads | None = None
) -> Setup:
    """`setup` with the moments that may stay wherever there is room, given as much as there is.

    So does a run (`ince.train.page_budget`): pages give way before forwards are cut.
    """
    if not setup.is_paged or setup.device_moment_bytes is not None or limit_bytes is None:
        return setup
    if plan_memory(shape, setup, overheads).peak.total <= limit_bytes:
        return setup
    least = setup.with_changes(device_moment_bytes=0)
    plan = plan_memory(shape, least, overheads)
    room = limit_bytes - plan.peak.total + plan.loaded.parts.get("moments", 0)
    return setup.with_changes(device_moment_bytes=max(0, room))


def _moment(
    name: str, held: Mapping[str, int], parts: Mapping[str, int], overheads: Overheads
) -> Moment:
    holes = parts.get("holes", 0)
    moving = sum(parts.values()) + held.get("moments", 0)
    all_parts = {
        **held,
        **parts,
        "fragmentation": holes + round((moving - holes) * overheads.fragmentation),
        "first_use": overheads.first_use_bytes if parts else 0,
        "framework": overheads.framework_bytes,
    }
    return Moment(name, {key: all_parts[key] for key in COMPONENTS if all_parts.get(key)})


def _holes(shape: Shape, setup: Setup, layer: LayerBytes, moments: int) -> int:
    """What a processor's heap has between tensors when most is held.

    Up to glibc 2.37 an aligned block asks for a little more than its size, so that the hole that a
    tensor leaves is too small for the next of that size. Traced block by block, the heap grows by
    each temporary that is freed under something that stays: in every layer by the product h of a
    feed-forward block's gate and up, which the block's output lies above; by a second part of the
    logits; and by what the first backward works in, about a layer. Two weights that are expanded
    from four bits are left under a layer's tensors as well, whose own then go into those holes, as
    far as there are enough of them. Moments, small and made later, go into some of it all.
    `Setup.has_compact_heap` has none of this.
    """
    product = setup.num_tokens * shape.mlp * setup.value_bytes
    holes = layer.kept
    if setup.method != "full":
        # Larger ones are mapped and leave none; counted all the same, so that more is never less.
        holes += shape.num_layers * min(product, _MAPPED_BYTES)
    if setup.activations == "keep" and 0 < layer.expanded < 2 * _MAPPED_BYTES:
        holes += shape.num_layers * max(0, layer.expanded - layer.kept)
    holes += logit_chunk(shape, setup)
    return max(0, holes - round(_INTO_HOLES * moments))


def _held(shape: Shape, setup: Setup) -> tuple[dict[str, int], dict[str, int]]:
    """(on the device, below it) all the time."""
    share = setup.num_devices
    parts = {name: -(-num // share) for name, num in weight_parts(shape, setup).items()}
    learnt = setup.num_trainable(shape)
    if setup.method != "full":
        parts["adapters"] = -(-learnt * setup.adapter_bytes // share)
    if setup.has_average:
        parts["average"] = -(-learnt * 4 // share)
    parts["moments"], below = held_moments(shape, setup)
    return parts, {"moments": below} if below else {}


def _kept(shape: Shape, setup: Setup, kept: int, layer_input: int) -> tuple[int, int]:
    """Activations of all layers at the end of the forward pass: (here, below)."""
    if setup.activations == "keep":
        return (shape.num_layers - setup.first_layer) * kept, 0
    inputs = (shape.num_layers - setup.first_layer) * layer_input
    if setup.activations == "recompute":
        return inputs, 0
    return layer_input, inputs - layer_input


def _gradients(shape: Shape, setup: Setup) -> int:
    size = setup.gradient_bytes if setup.method == "full" else setup.adapter_bytes
    return -(-setup.num_trainable(shape) * size // setup.num_devices)


def _gathered(shape: Shape, setup: Setup) -> int:
    """Of a sharded model, the layer that computes and the one that is fetched meanwhile."""
    if setup.num_devices == 1:
        return 0
    layer = sum(
        num for name, num in weight_parts(shape, setup).items() if name in ("codes", "scales")
    )
    layer += weight_parts(shape, setup).get("linear", 0)
    return 2 * layer // shape.num_layers


def _update_work(shape: Shape, setup: Setup, gradients: int) -> int:
    """Temporaries of the update: of one tensor where it goes tensor by tensor."""
    if setup.is_paged or setup.has_8bit_states:
        return 0
    if setup.on_cpu:
        largest = shape.counts.embedding if setup.method == "full" else setup.r * shape.mlp
        return 2 * 4 * largest
    # torch's foreach update holds the square roots of all second moments.
    return gradients * 4 // (setup.gradient_bytes if setup.method == "full" else 4)
