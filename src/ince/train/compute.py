"""How the steps of a run compute: fused modules, what is kept for the backward pass, compilation.

All of it is put on the model for the time of a run and taken off again; parameters, their names
and the numbers that come out (up to rounding) are the same with and without.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from ince.errors import InceError
from ince.lora.layers.adapted import plain_model
from ince.models import FusedReport, fused, output_head
from ince.train.activations import kept_activations
from ince.train.config import TrainConfig

__all__ = ["ComputeReport", "computed_as"]

# A compiled model has to be this much faster than the fused one: below, it is noise.
_LEAST_GAIN = 1.05
_NUM_TRIALS = 2


@dataclass(frozen=True)
class ComputeReport:
    """What was chosen, for the record.

    Attributes:
        fused: what computes by fused functions; None where nothing does.
        activations: of the config.
        compiled: whether layers are compiled.
        refused: why not, where it was asked for.
    """

    fused: FusedReport | None
    activations: str
    compiled: bool = False
    refused: str | None = None

    def to_dict(self) -> dict[str, object]:
        """JSON values."""
        return {
            "fused": None if self.fused is None else self.fused.to_dict(),
            "activations": self.activations,
            "compiled": self.compiled,
            "compile_refused": self.refused,
        }


@contextmanager
def computed_as(
    model: nn.Module,
    config: TrainConfig,
    *,
    trial: Callable[[], object],
    say: Callable[[str], None],
) -> Iterator[ComputeReport]:
    """Inside, forwards and gradients of `model` are computed as `config` says.

    Args:
        model: of transformers, wrapped or not.
        config: of the run.
        trial: gradients of one step, without an update; with ``compile`` it is timed both ways.
        say: told when compilation is refused.

    Raises:
        ConfigError: the model cannot keep its activations like that.
    """
    # Looked at now, once: during a step, noise of that step's size may lie on the embeddings.
    output_head(model)
    with ExitStack() as stack:
        stack.enter_context(kept_activations(model, config.activations))
        refused = None
        if config.compile:
            with fused(model) if config.fused else ExitStack():
                seconds = _timed(trial)
            with ExitStack() as tried:
                refused = _try_compiled(model, trial, seconds, tried)
                if refused is None:
                    stack.push(tried.pop_all())
                    yield ComputeReport(None, config.activations, compiled=True)
                    return
            say(f"not compiled: {refused}")
        report = stack.enter_context(fused(model)) if config.fused else None
        yield ComputeReport(report, config.activations, refused=refused)


def _try_compiled(
    model: nn.Module, trial: Callable[[], object], seconds: float, stack: ExitStack
) -> str | None:
    """Compile the layers; why that is no good, or None when it is."""
    layers = _layers(plain_model(model))
    if not layers:
        return "the model's class has no layers that are compiled by themselves"
    stack.callback(_uncompile, layers)
    try:
        for layer in layers:
            _compile(layer)
        compiled = _timed(trial)
    except InceError:
        raise
    except Exception as error:  # a missing compiler, a graph it cannot take: dozens of classes
        first_line, *_ = [*str(error).strip().splitlines(), ""]
        return f"{type(error).__name__}: {first_line}"
    if compiled * _LEAST_GAIN > seconds:
        return f"a step takes {compiled:.2f} s compiled and {seconds:.2f} s as it is"
    return None


def _layers(model: nn.Module) -> list[nn.Module]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _compile(layer: nn.Module) -> None:
    layer.compile()


def _uncompile(layers: list[nn.Module]) -> None:
    for layer in layers:
        held: Any = layer
        held._compiled_call_impl = None


def _timed(trial: Callable[[], object]) -> float:
    """Seconds of the quickest of some trials, after one that warms up."""
    trial()
    found: list[float] = []
    for _ in range(_NUM_TRIALS):
        start = time.perf_counter()
        trial()
        found.append(time.perf_counter() - start)
    return min(found)
