"""Which part of a training step an operation belongs to, from a torch.profiler trace.

Forward: the innermost module of a kind that `KINDS` names, marked by hooks while profiling.
Backward: that of the forward operation of the same autograd node. Within a part some operations
tell more than their place does (`NAMES`): a thin product in a linear layer is the adapter's.
Times are the processor's own time of an operation, children left out.
"""

import contextlib
import sys
from collections import defaultdict

from torch.profiler import record_function

MARK = "part: "
PARTS = (
    "matrix products",
    "attention",
    "norms",
    "rope",
    "activation",
    "LoRA",
    "head and loss",
    "optimizer",
    "dequantization",
    "embedding",
    "rest",
)
# Endings of class names of modules, lower case; the first that fits.
KINDS = (
    ("norm", "norms"),
    ("rotaryembedding", "rope"),
    ("attention", "attention"),
    ("embedding", "embedding"),
    ("activation", "activation"),
    ("silu", "activation"),
    ("linear", "matrix products"),
    ("linear4bit", "matrix products"),
    ("mlp", "activation"),
)
# Beginnings or parts of operators' names that say what they are wherever they stand.
NAMES = (
    ("dequantize", "dequantization"),
    ("optimizer.step", "optimizer"),
    ("_fused_adamw", "optimizer"),
    ("_foreach", "optimizer"),
    ("lerp_", "optimizer"),
    ("addcdiv_", "optimizer"),
    ("addcmul_", "optimizer"),
    ("vector_norm", "optimizer"),
    ("rope", "rope"),
    ("rotary", "rope"),
    ("cross_entropy", "head and loss"),
    ("log_softmax", "head and loss"),
    ("nll_loss", "head and loss"),
    ("scaled_dot_product", "attention"),
    ("attention", "attention"),
    ("rms_norm", "norms"),
    ("swiglu", "activation"),
    ("silu", "activation"),
    ("gelu", "activation"),
    ("fusedmlp", "activation"),
    ("fusedlora", "LoRA"),
)
PRODUCTS = {"aten::mm", "aten::addmm", "aten::addmm_", "aten::linear", "aten::matmul"}
PRODUCTS |= {"aten::mkldnn_linear", "mkldnn::_linear_pointwise", "ince::linear_4bit"}
PRODUCTS |= {"ince::linear_4bit_input_grad", "aten::bmm", "aten::baddbmm"}


@contextlib.contextmanager
def marked(model):
    """Inside, the modules of `model` mark their part in a trace, and so does rotation."""
    handles, open_marks = [], []

    def enter(part):
        def hook(*_):
            open_marks.append(record_function(MARK + part))
            open_marks[-1].__enter__()

        return hook

    def leave(*_):
        open_marks.pop().__exit__(None, None, None)

    head = model.get_output_embeddings()
    for module in model.modules():
        part = "head and loss" if module is head else _kind(type(module).__name__)
        if part is not None:
            handles.append(module.register_forward_pre_hook(enter(part)))
            handles.append(module.register_forward_hook(leave))
    with _marked_rotation(model):
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _kind(name):
    lower = name.lower()
    return next((part for ending, part in KINDS if lower.endswith(ending)), None)


@contextlib.contextmanager
def _marked_rotation(model):
    """transformers rotates by a function of the model's file, which no hook sees."""
    files = {sys.modules[type(module).__module__] for module in model.modules()}
    found = [file for file in files if hasattr(file, "apply_rotary_pos_emb")]
    before = {file: file.apply_rotary_pos_emb for file in found}

    def rotate(original):
        def call(*args, **kwargs):
            with record_function(MARK + "rope"):
                return original(*args, **kwargs)

        return call

    for file, original in before.items():
        file.apply_rotary_pos_emb = rotate(original)
    try:
        yield
    finally:
        for file, original in before.items():
            file.apply_rotary_pos_emb = original


def part_times(events, rank):
    """Seconds of each part, and the operations that took most: {part: {operation: seconds}}.

    Args:
        events: `torch.profiler.profile.events()`, with shapes.
        rank: of the adapter.
    """
    places = _places_by_node(events)
    times = defaultdict(lambda: defaultdict(float))
    for event in events:
        if event.name.startswith((MARK, "ProfilerStep")):
            continue
        seconds = event.self_cpu_time_total / 1e6
        if seconds > 0:
            times[_part(event, places, rank)][event.name] += seconds
    return {part: dict(times[part]) for part in PARTS if part in times}


def _ancestors(event):
    while event is not None:
        yield event
        event = event.cpu_parent


def _place(event):
    """The part that the innermost mark around an event names, or None."""
    for each in _ancestors(event):
        if each.name.startswith(MARK):
            return each.name.removeprefix(MARK)
    return None


def _places_by_node(events):
    """The part of the forward operation of each autograd node, by its sequence number."""
    places = {}
    for event in events:
        if event.sequence_nr >= 0 and not _is_backward(event):
            place = _place(event)
            if place is not None:
                places[event.sequence_nr] = place
    return places


def _is_backward(event):
    return any(each.name.startswith("autograd::engine") for each in _ancestors(event))


def _backward_place(event, places):
    for each in _ancestors(event):
        if each.sequence_nr in places:
            return places[each.sequence_nr]
    return None


def _part(event, places, rank):
    names = [e.name.lower() for e in _ancestors(event) if not e.name.startswith(MARK)]
    named = next((part for name in names for key, part in NAMES if key in name), None)
    place = _backward_place(event, places) if _is_backward(event) else _place(event)
    if event.name in PRODUCTS and "head and loss" not in (named, place):
        if event.name.endswith("bmm"):
            return "attention"
        shapes = [shape for shape in event.input_shapes if len(shape) == 2]
        return "LoRA" if any(rank in shape for shape in shapes) else "matrix products"
    if named is not None:
        return named
    # Casts, additions and scalings around the adapter's products.
    return "LoRA" if place == "matrix products" else place or "rest"
