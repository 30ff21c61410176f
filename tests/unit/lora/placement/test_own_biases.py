"""Whose biases are trained, and how files name them."""

import torch
from torch import nn

from ince.lora import LoraConfig, adapter_tensors, inject
from ince.lora.placement.find import find_places_of
from ince.lora.placement.inject import inject_tensors
from ince.lora.placement.own_biases import BiasPlace


def model():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "query": nn.Linear(4, 4),
            "key": nn.Linear(4, 4, bias=False),
            "norm": nn.LayerNorm(4),
            "head": nn.Sequential(nn.Linear(4, 2)),
        }
    )


def config(**values):
    return LoraConfig(r=2, target_modules=["query", "key"], **values)


def keys(**values):
    found = find_places_of(model(), config(**values), fresh=True)
    return [place.key for place in found.places if isinstance(place, BiasPlace)]


def test_which():
    stem = "base_model.model."
    every = [f"{stem}query.base_layer.bias", f"{stem}norm.bias", f"{stem}head.0.bias"]
    assert keys(bias="all") == every
    assert keys(bias="lora_only") == every[:1]
    assert keys(bias="none") == []
    assert keys(bias="all", modules_to_save=["head"]) == every[:2]


def test_names_of_other_writers():
    base = model()
    inject(base, config(bias="all", modules_to_save=["head"]))
    tensors = adapter_tensors(base)
    given = {name: torch.randn_like(tensor) for name, tensor in tensors.items()}
    stem = "base_model.model."
    renamed = dict(given)
    renamed[f"{stem}query.bias"] = renamed.pop(f"{stem}query.base_layer.bias")
    renamed[f"{stem}norm.base_layer.bias"] = renamed.pop(f"{stem}norm.bias")
    for name in ("original_module.0.bias", "modules_to_save.0.bias"):
        renamed[f"{stem}head.{name}"] = torch.zeros(2)
    other = model()
    inject_tensors(other, config(bias="all", modules_to_save=["head"]), renamed)
    got = adapter_tensors(other)
    assert all(got[name].equal(tensor) for name, tensor in given.items())
