"""Quantizing a model in place, one layer at a time.

Which layers: every `nn.Linear` but the output head, whose rounding shows in every token unless
it is asked for, and what the config names; and the fused experts of mixtures, stack by stack.
Peak memory is the model, plus the packed form of one layer or stack.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ince.errors import QuantError, did_you_mean
from ince.quant.config import NF4Config
from ince.quant.experts4bit import Experts4bit, put_experts, stack_names
from ince.quant.linear4bit import Linear4bit

__all__ = ["quantizable_names", "quantizable_stacks", "quantize_model"]

# Weights of these are known to have more than two dimensions and to be no experts.
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)


def quantize_model(
    model: nn.Module, config: NF4Config, *, progress: Callable[[int, int], None] | None = None
) -> None:
    """Replace the linear layers of `model` by `Linear4bit`, and experts by `Experts4bit`, in place.

    Args:
        model: on any device; what is not replaced is left as it is, quantized layers included.
        config: of the quantization.
        progress: called with (layers done, layers in all), first with 0 done.

    Raises:
        QuantError: a weight is not finite or of another type, or nothing can be quantized; or
            the model has weights in a form that would silently stay as they are. The model is
            then as it was.
    """
    names = quantizable_names(model, config)
    stacks = quantizable_stacks(model, config)
    _check_weights(model, [f"{name}.weight" for name in names] + stacks)
    total = len(names) + len(stacks)
    if progress is not None:
        progress(0, total)
    for number, name in enumerate(names, start=1):
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Linear):
            quantized = Linear4bit.from_linear(layer, config, name=f"{name}.weight")
            for place in _places(model, layer):
                parent, _, leaf = place.rpartition(".")
                setattr(model.get_submodule(parent), leaf, quantized)
            del layer
        if progress is not None:
            progress(number, total)
    for number, name in enumerate(stacks, start=len(names) + 1):
        owner, _, leaf = name.rpartition(".")
        experts = model.get_submodule(owner)
        stack = Experts4bit.from_weight(experts.get_parameter(leaf), config=config, name=name)
        put_experts(experts, leaf, stack)
        if progress is not None:
            progress(number, total)


def quantizable_names(model: nn.Module, config: NF4Config) -> list[str]:
    """Dotted names of the linear layers that `quantize_model` would replace, in model order.

    Left out are the output head unless `config.quantize_head`, layers that share their weight
    with a module of another kind (a tied embedding), and modules in or under
    `config.skip_modules`.

    Raises:
        QuantError: see `quantize_model`; or a name in `skip_modules` is of no module.
    """
    modules = dict(model.named_modules())
    _check_skipped(modules, config.skip_modules)
    open_modules = {n: m for n, m in modules.items() if not _is_skipped(n, config.skip_modules)}
    _check_other_forms(open_modules)
    head = None if config.quantize_head else _output_head(model)
    shared = {
        id(parameter)
        for module in modules.values()
        if not isinstance(module, nn.Linear)
        for parameter in module.parameters(recurse=False)
    }
    names = [
        name
        for name, module in open_modules.items()
        if type(module) is nn.Linear and module is not head and id(module.weight) not in shared
    ]
    if "" in names:
        raise QuantError(
            "a lone linear layer cannot be replaced in place",
            got=type(model).__name__,
            expected="a model that holds linear layers",
            do="use Linear4bit.from_linear",
        )
    packed = (Linear4bit, Experts4bit)
    if not names and not any(
        isinstance(module, packed) or stack_names(module) for module in open_modules.values()
    ):
        raise QuantError(
            "the model has no linear layer to quantize",
            got=type(model).__name__,
            do="load it without quantization",
        )
    return names


def quantizable_stacks(model: nn.Module, config: NF4Config) -> list[str]:
    """Dotted names of the parameters of fused experts that `quantize_model` would replace.

    Left out are modules in or under `config.skip_modules`.
    """
    return [
        f"{name}.{leaf}" if name else leaf
        for name, module in model.named_modules()
        if not _is_skipped(name, config.skip_modules)
        for leaf in stack_names(module)
    ]


def _output_head(model: nn.Module) -> nn.Module | None:
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    if isinstance(head, nn.Module):
        return head
    named = getattr(model, "lm_head", None)
    return named if isinstance(named, nn.Module) else None


def _places(model: nn.Module, module: nn.Module) -> list[str]:
    return [name for name, each in model.named_modules(remove_duplicate=False) if each is module]


def _is_skipped(name: str, skipped: tuple[str, ...]) -> bool:
    return any(f".{entry}." in f".{name}." for entry in skipped)


def _check_skipped(modules: Mapping[str, nn.Module], skipped: tuple[str, ...]) -> None:
    for entry in skipped:
        if not any(_is_skipped(name, (entry,)) for name in modules):
            parts = {part for name in modules for part in (name, name.rpartition(".")[2])}
            raise QuantError(
                "a module to be skipped is not in the model",
                where="skip_modules",
                got=entry,
                expected="a module's name, or a run of its dotted parts",
                do=did_you_mean(entry, sorted(parts)),
            )


def _check_other_forms(modules: Mapping[str, nn.Module]) -> None:
    """Refuse weights that are linear layers in disguise, and would stay 16-bit without a word."""
    found = [
        f"{name}.{leaf}" if name else leaf
        for name, module in modules.items()
        if not isinstance(module, _CONVOLUTIONS)
        for leaf, parameter in module.named_parameters(recurse=False)
        # Experts that multiply with all of their stack; and GPT-2's linear layer, kept as
        # (in, out).
        if (
            sum(size > 1 for size in parameter.shape) > 2
            or (parameter.ndim == 2 and type(module).__name__ == "Conv1D")
        )
        and leaf not in stack_names(module)
    ]
    if found:
        raise QuantError(
            f"{len(found)} weights are neither linear layers nor known to be left alone",
            where=", ".join(found[:5]),
            expected="weights in nn.Linear, or fused experts that can go one by one",
            do="name their modules in skip_modules to keep them as they are",
        )


def _check_weights(model: nn.Module, names: list[str]) -> None:
    """All weights before the first is replaced, so that a refused model is left whole."""
    damaged: list[str] = []
    for name in names:
        weight = model.get_parameter(name)
        if weight.is_meta or weight.numel() == 0 or _is_finite(weight):
            continue
        num_bad = int((~weight.isfinite()).sum())
        damaged.append(f"{name} ({num_bad} of {weight.numel()})")
    if damaged:
        raise QuantError(
            f"{len(damaged)} tensors hold weights that are not finite",
            where=", ".join(damaged[:5]),
            got="NaN or infinite weights",
            expected="finite weights",
            do="the model's files are damaged; get them again",
        )


def _is_finite(weight: Tensor) -> bool:
    # Least and largest carry NaN and infinity along, and need no tensor of the weight's size.
    low, high = torch.aminmax(weight.detach())
    return bool(low.isfinite() & high.isfinite())
