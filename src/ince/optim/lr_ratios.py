"""Learning rates by layer and by name: a factor on the schedule's rate for each parameter.

    decay by depth    layer i of N learns decay^(N − 1 − i) times as fast: the last one as it is,
                      each before it a little slower. What comes before the layers (embeddings)
                      counts as a layer before the first, what comes after them as the last.
    multipliers       by patterns; a parameter that several match has the product of theirs.
    LoRA+             B learns λ times as fast as A (`ince.optim.lora_plus`).

The three are multiplied. `build_optimizer` makes a group of parameters of one factor.
"""

import re
from collections.abc import Callable, Collection, Mapping

from torch import nn

from ince.errors import ConfigError, Problem, did_you_mean
from ince.optim.lora_plus import lora_plus_ratios

__all__ = ["depth_ratios", "lr_ratios", "multiplier_ratios"]

_DOTTED = re.compile(r"[\w-]+(?:\.[\w-]+)*")
_MAX_SHOWN = 8


def lr_ratios(
    model: nn.Module,
    *,
    loraplus_lr_ratio: float | None = None,
    layer_lr_decay: float | None = None,
    lr_multipliers: Mapping[str, float] | None = None,
) -> dict[str, float] | None:
    """The factor of each parameter that takes gradients, by its name in `model`; None: all 1.

    Args:
        model: with adapters in it.
        loraplus_lr_ratio: λ of LoRA+.
        layer_lr_decay: what each layer's rate is of the next one's.
        lr_multipliers: factor by pattern (see `multiplier_ratios`).

    Raises:
        ConfigError: a pattern matches nothing, or the model has no layers to count.
    """
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    parts: list[Mapping[str, float]] = []
    if loraplus_lr_ratio is not None:
        parts.append(lora_plus_ratios(model, loraplus_lr_ratio))
    if layer_lr_decay is not None:
        parts.append(depth_ratios(model, names, layer_lr_decay))
    if lr_multipliers:
        parts.append(multiplier_ratios(names, lr_multipliers))
    if not parts:
        return None
    ratios = dict.fromkeys(names, 1.0)
    for part in parts:
        for name in names:
            ratios[name] *= part[name]
    return ratios


def depth_ratios(model: nn.Module, names: Collection[str], decay: float) -> dict[str, float]:
    """decay^(N − 1 − i) for the parameters of layer i of N.

    Layers are the entries of the outermost `nn.ModuleList` above a parameter.

    Raises:
        ConfigError: none of the parameters is in such a list.
    """
    lengths = {name: len(m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    places = {name: _place(name, lengths) for name in names}
    deepest = max((place[1] for place in places.values() if place is not None), default=0)
    if deepest == 0:
        raise ConfigError(
            "the model has no layers to count",
            problems=[Problem("layer_lr_decay", "what learns is in no list of layers")],
        )
    before = _embedded(model)
    ratios: dict[str, float] = {}
    for name, place in places.items():
        if place is not None:
            index, length = place
            ratios[name] = decay ** (length - 1 - index)
        else:
            ratios[name] = decay**deepest if before(name) else 1.0
    return ratios


def _place(name: str, lengths: Mapping[str, int]) -> tuple[int, int] | None:
    """Index and number of the layer that `name` is in; None outside of all."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        length = lengths.get(".".join(parts[:end]))
        if length is not None:
            return int(parts[end]), length
    return None


def _embedded(model: nn.Module) -> Callable[[str], bool]:
    """Whether a parameter, by its name, is in what embeds the tokens."""
    find = getattr(model, "get_input_embeddings", None)
    embeddings = find() if callable(find) else None
    prefixes = tuple(f"{name}." for name, m in model.named_modules() if m is embeddings and name)
    return lambda name: name.startswith(prefixes)


def multiplier_ratios(names: Collection[str], multipliers: Mapping[str, float]) -> dict[str, float]:
    """The product of the factors whose patterns match a name; 1 where none does.

    A pattern of dotted words (``q_proj``, ``layers.0``, ``lora_B``) matches where these words
    follow each other in the name. Any other is a regular expression for the whole name.

    Raises:
        ConfigError: a pattern matches no name, or is no regular expression; all such patterns.
    """
    ratios = dict.fromkeys(names, 1.0)
    problems: list[Problem] = []
    for pattern, factor in multipliers.items():
        key = f"lr_multipliers.{pattern}"
        try:
            matched = [name for name in names if _matches(pattern, name)]
        except re.error as error:
            problems.append(Problem(key, f"is not a regular expression: {error}"))
            continue
        if not matched:
            problems.append(Problem(key, "matches nothing that learns", _nearest(pattern, names)))
        for name in matched:
            ratios[name] *= factor
    if problems:
        raise ConfigError("learning rates by name cannot be set", problems=problems)
    return ratios


def _matches(pattern: str, name: str) -> bool:
    if _DOTTED.fullmatch(pattern):
        return f".{pattern}." in f".{name}."
    return re.fullmatch(pattern, name) is not None


def _nearest(pattern: str, names: Collection[str]) -> str | None:
    words = list(dict.fromkeys(word for name in names for word in name.split(".")))
    words = [word for word in words if not word.isdigit()]
    near = did_you_mean(pattern.rpartition(".")[2], words)
    return near or "there are " + ", ".join(words[:_MAX_SHOWN])
