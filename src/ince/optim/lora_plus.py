"""LoRA+: B learns faster than A.

A starts at random and B at zero, so that with one rate for both the features of a wide layer
hardly move. With a rate λ times as large for B they do; λ about 16 is usual.

What counts as B is PEFT's to say: factors called lora_B, and every trained vector (biases,
norms, magnitudes, VeRA's). An embedding's factors, where it is A that starts at zero, have a
rate of their own.

Source: arXiv:2402.12354.
"""

import math
import sys
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn

from ince.errors import ConfigError, Problem
from ince.lora import LoraLayer

__all__ = ["create_loraplus_optimizer", "lora_plus_groups", "lora_plus_ratios"]

Kind = Literal["A", "embedding", "B", "B without decay"]

_KINDS: tuple[Kind, ...] = ("A", "embedding", "B", "B without decay")
_EIGHT_BIT = frozenset({"Adam8bit", "AdamW8bit", "PagedAdam8bit", "PagedAdamW8bit"})


def create_loraplus_optimizer(
    model: nn.Module,
    optimizer_cls: type[torch.optim.Optimizer],
    *,
    lr: float,
    loraplus_lr_ratio: float,
    loraplus_lr_embedding: float = 1e-6,
    loraplus_weight_decay: float = 0.0,
    **kwargs: Any,
) -> torch.optim.Optimizer:
    """An optimizer with a rate for A and one for B, in PEFT's four groups.

    Args:
        model: what of it takes gradients is trained.
        optimizer_cls: such as `torch.optim.AdamW`.
        lr: learning rate of A.
        loraplus_lr_ratio: λ; the rate of B is λ · `lr`.
        loraplus_lr_embedding: of the factors of embeddings.
        loraplus_weight_decay: of all but biases and the weights of layer norms.
        **kwargs: of the optimizer.

    Raises:
        ConfigError: a rate, the ratio or the decay cannot be.
    """
    groups = lora_plus_groups(
        model,
        lr=lr,
        ratio=loraplus_lr_ratio,
        lr_embedding=loraplus_lr_embedding,
        weight_decay=loraplus_weight_decay,
    )
    optimizer = optimizer_cls(groups, lr=lr, **kwargs)  # pyright: ignore[reportCallIssue]
    if optimizer_cls.__name__ in _EIGHT_BIT:
        _keep_embeddings_in_32_bits(model, optimizer)
    return optimizer


def lora_plus_groups(
    model: nn.Module,
    *,
    lr: float,
    ratio: float,
    lr_embedding: float = 1e-6,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """What takes gradients, as groups for any optimizer of torch: A, embeddings, B, B undecayed.

    Args:
        model: with adapters in it.
        lr: of A.
        ratio: λ.
        lr_embedding: of the factors of embeddings.
        weight_decay: of the first three.

    Raises:
        ConfigError: a number cannot be.
    """
    _check(lr=lr, ratio=ratio, lr_embedding=lr_embedding, weight_decay=weight_decay)
    rates = {"A": lr, "embedding": lr_embedding, "B": lr * ratio, "B without decay": lr * ratio}
    members: dict[Kind, list[nn.Parameter]] = {kind: [] for kind in _KINDS}
    for _, parameter, kind in _trained(model):
        members[kind].append(parameter)
    return [
        {
            "params": members[kind],
            "lr": rates[kind],
            "weight_decay": 0.0 if kind == "B without decay" else weight_decay,
        }
        for kind in _KINDS
    ]


def lora_plus_ratios(model: nn.Module, ratio: float) -> dict[str, float]:
    """By how much the rate of each trained parameter exceeds that of A, by its name in `model`.

    An embedding's factors learn as A does.

    Raises:
        ConfigError: the ratio cannot be.
    """
    _check(ratio=ratio)
    return {name: ratio if kind.startswith("B") else 1.0 for name, _, kind in _trained(model)}


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Kind]]:
    undecayed = set(_without_decay(model))
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # The group is two names up: <layer>.lora_embedding_A.<adapter>.
        owner = model.get_submodule(".".join(name.split(".")[:-2]))
        if isinstance(owner, LoraLayer) and isinstance(owner.base_layer, nn.Embedding):
            yield name, parameter, "embedding"
        elif "lora_B" in name or parameter.ndim == 1:
            yield name, parameter, "B without decay" if name in undecayed else "B"
        else:
            yield name, parameter, "A"


def _without_decay(model: nn.Module) -> Iterator[str]:
    for name, _ in model.named_parameters():
        if "bias" in name:
            yield name
    for prefix, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            for name, _ in module.named_parameters():
                yield f"{prefix}.{name}"


def _check(*, ratio: float, **others: float) -> None:
    """All must be finite and not negative, and the ratio not zero."""
    numbers = {**others, "loraplus_lr_ratio": ratio}
    problems = [
        Problem(name, f"expected a number from 0 on, got {value}")
        for name, value in numbers.items()
        if not 0 <= value < math.inf
    ]
    if ratio == 0:
        problems.append(Problem("loraplus_lr_ratio", "is 0: B would stay at zero"))
    if problems:
        raise ConfigError("LoRA+ cannot train like this", problems=problems)


def _keep_embeddings_in_32_bits(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    keep = getattr(optimizer, "keep_in_float32", None)
    if keep is not None:
        trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        keep(module.weight for module in embeddings if module.weight in trained)
        return
    # The library of such an optimizer is loaded, or there would be no class.
    library: Any = sys.modules[type(optimizer).__module__.partition(".")[0]]
    overrides = library.optim.GlobalOptimManager.get_instance()
    for module in embeddings:
        overrides.register_module_override(module, "weight", {"optim_bits": 32})
