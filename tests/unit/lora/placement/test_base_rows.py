"""The base's embeddings in a file: passed over, or rows of the adapter's own."""

import pytest
import torch
from torch import nn

from ince.errors import AdapterError
from ince.lora import LoraConfig, VeraConfig
from ince.lora.placement.base_rows import with_rows_of_base

STEM = "base_model.model."


class Model(nn.Module):
    def __init__(self, *, tied, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(6, 4, dtype=dtype)
        self.head = nn.Linear(4, 6, bias=False, dtype=dtype)
        if tied:
            self.head.weight = self.embed.weight

    def get_input_embeddings(self):
        return self.embed


def read(model, tensors, **values):
    config = LoraConfig(target_modules=["embed"], **values)
    config, left = with_rows_of_base(model, config, tensors, "file")
    return config.trainable_token_indices, left


def other(model, *rows):
    weight = model.embed.weight.detach().clone()
    weight[list(rows)] += 1
    return weight


def test_what_the_base_has_is_passed_over():
    model = Model(tied=False)
    given = {f"{STEM}embed.base_layer.weight": other(model), "else": torch.zeros(1)}
    assert read(model, given) == (None, {"else": given["else"]})
    tokens = {f"{STEM}embed.token_adapter.base_layer.weight": other(model)}
    assert read(model, tokens, trainable_token_indices=[2]) == ((2,), {})


def test_precisions_may_differ():
    given = other(Model(tied=False))
    rounded = Model(tied=False, dtype=torch.bfloat16)
    rounded.embed.weight.data = given.bfloat16()
    key = f"{STEM}embed.base_layer.weight"
    assert read(rounded, {key: given})[0] is None
    assert read(Model(tied=False), {key: given.bfloat16()})[0] is None


def test_rows_that_differ_are_the_adapters():
    model = Model(tied=False)
    weight = other(model, 1, 4)
    tokens, left = read(model, {f"{STEM}embed.base_layer.weight": weight})
    assert tokens == {"embed": (1, 4)}
    assert left[f"{STEM}embed.token_adapter.trainable_tokens_delta"].equal(weight[[1, 4]])


def test_they_join_those_that_are_trained():
    model = Model(tied=False)
    weight, trained = other(model, 1, 4), torch.ones(2, 4)
    stem = f"{STEM}embed.token_adapter."
    given = {f"{stem}base_layer.weight": weight, f"{stem}trainable_tokens_delta": trained}
    tokens, left = read(model, given, trainable_token_indices=[4, 0])
    assert tokens == {"embed": (4, 0, 1)}
    (rows,) = left.values()
    assert rows.equal(torch.cat([trained, weight[[1]]]))


def test_a_tied_head_is_not_read_twice():
    model = Model(tied=True)
    weight, trained = other(model, 1), torch.ones(1, 4)
    given = {}
    for name in ("embed", "head"):
        given[f"{STEM}{name}.token_adapter.base_layer.weight"] = weight
        given[f"{STEM}{name}.token_adapter.trainable_tokens_delta"] = trained
    tokens, left = read(model, given, trainable_token_indices=[5])
    assert tokens == {"embed": (5, 1)}
    assert list(left) == [f"{STEM}embed.token_adapter.trainable_tokens_delta"]


def test_another_vocabulary():
    with pytest.raises(AdapterError, match=r"resize_token_embeddings\(7\)"):
        read(Model(tied=False), {f"{STEM}embed.base_layer.weight": torch.zeros(7, 4)})


def test_another_base():
    model = Model(tied=False)
    with pytest.raises(AdapterError, match="4 of 6 rows differ"):
        read(model, {f"{STEM}embed.base_layer.weight": other(model, 0, 1, 2, 3)})


def test_methods_without_rows_keep_their_tensors():
    given = {f"{STEM}embed.base_layer.weight": torch.zeros(6, 4)}
    config = VeraConfig(target_modules=["embed"])
    assert with_rows_of_base(Model(tied=False), config, given, None) == (config, given)
