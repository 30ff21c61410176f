from pathlib import Path

import pytest
import torch

from ince.errors import AdapterError
from ince.lora.insight.settings import read_settings
from ince.lora.insight.tensor_names import sort_tensors
from ince.lora.insight.updates import read_updates
from ince.lora.layers.projections import Projections

P = "base_model.model."
SHAPES = {"q": (5, 6), "down": (4, 9)}


def vectors():
    return {
        f"{P}{name}.vera_lambda_{part}": torch.rand(size)
        for name, (out, _) in SHAPES.items()
        for part, size in (("b", out), ("d", 3))
    }


def read(tensors, *, base=True, **config):
    settings = read_settings({"peft_type": "VERA", "r": 3} | config, where=Path("x"))
    shape = SHAPES.get if base else None
    found = sort_tensors(tensors, settings)
    return read_updates(found, settings, where=Path("f"), base_shape=shape)


def dense(tensors, name, a, b):
    out, width = SHAPES[name]
    scale_b, scale_d = (tensors[f"{P}{name}.vera_lambda_{part}"] for part in "bd")
    return torch.diag(scale_b) @ b[:out] @ torch.diag(scale_d) @ a[:, :width]


def test_each_layer_has_its_corner_of_the_shared_matrices():
    a, b = torch.randn(3, 9), torch.randn(5, 3)
    tensors = vectors() | {"base_model.vera_A": a, "base_model.vera_B": b}
    updates = read(tensors)
    assert updates.notes == []
    for layer in updates.layers:
        expected = dense(tensors, layer.name, a, b)
        torch.testing.assert_close(layer.factors().delta(), expected)
        assert layer.num_parameters == SHAPES[layer.name][0] + 3


def test_matrices_that_are_not_saved_are_drawn_from_the_seed():
    a, b = Projections(3, 9, 5, seed=17, is_saved=False).own()
    tensors = vectors()
    for layer in read(tensors, projection_prng_key=17).layers:
        torch.testing.assert_close(
            layer.factors().delta(), dense(tensors, layer.name, a, b), rtol=1e-5, atol=1e-6
        )


def test_without_the_base_it_is_said_what_is_not_known():
    updates = read(vectors(), base=False)
    assert updates.layers == []
    assert updates.unread == {"q": 8, "down": 7}
    assert "--base" in updates.notes[0]
    saved = vectors() | {
        "base_model.vera_A": torch.randn(3, 9),
        "base_model.vera_B": torch.randn(5, 3),
    }
    updates = read(saved, base=False)
    assert {layer.shape[1] for layer in updates.layers} == {9}
    assert "widest" in updates.notes[0]


@pytest.mark.parametrize(("a", "b"), [((2, 9), (5, 3)), ((3, 9), (4, 3)), ((3, 9), (5, 2))])
def test_shared_matrices_that_are_too_small(a, b):
    shared = {"base_model.vera_A": torch.randn(a), "base_model.vera_B": torch.randn(b)}
    with pytest.raises(AdapterError, match="contradict"):
        read(vectors() | shared)
