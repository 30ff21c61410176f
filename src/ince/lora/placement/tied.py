"""Which modules share one weight, and what a config says about keeping it one.

An embedding that is the output head too is one weight under two names. An adapter that trains
one of the two would let them drift apart, and a merged model would need both. So a fresh
adapter keeps them one, as PEFT does when ``ensure_weight_tying`` is set; the config that is
written says so. An adapter of PEFT that has them apart is read as it is, and so is one here
where ``ensure_weight_tying=False`` was said in so many words.
"""

from torch import nn

from ince.lora.config import PeftConfig
from ince.lora.layers.adapted import base_of, outer_modules, own_parameters
from ince.lora.placement.replication import is_replicated

__all__ = ["input_embedding_name", "keeps_tied", "tied_names"]

_FIELD = "ensure_weight_tying"


def tied_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """For each module that shares its weight with others: the names of all of them.

    The input embedding, if it is among them, comes first; the others in the model's order.
    """
    by_weight: dict[int, list[str]] = {}
    for name, module in outer_modules(model):
        weight = own_parameters(base_of(module)).get("weight")
        if name and weight is not None and not is_replicated(model, name):
            by_weight.setdefault(id(weight), []).append(name)
    first = input_embedding_name(model)
    found: dict[str, tuple[str, ...]] = {}
    for names in by_weight.values():
        if len(names) > 1:
            group = tuple(sorted(names, key=lambda name: name != first))
            found.update(dict.fromkeys(names, group))
    return found


def input_embedding_name(model: nn.Module) -> str | None:
    """Dotted name of the module that embeds tokens, where the model knows it."""
    get = getattr(model, "get_input_embeddings", None)
    try:
        embedding = get() if callable(get) else None
    except RuntimeError:  # of some kind, transformers' way to say that there is none
        return None
    return next((name for name, module in outer_modules(model) if module is embedding), None)


def keeps_tied(config: PeftConfig, *, fresh: bool) -> bool:
    """Whether what the adapter trains of tied modules shall stay one."""
    if getattr(config, _FIELD, False):
        return True
    return fresh and _FIELD not in config.model_fields_set
