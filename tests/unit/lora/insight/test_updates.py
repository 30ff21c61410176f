from pathlib import Path

import pytest
import torch

from ince.errors import AdapterError
from ince.lora.insight.settings import read_settings
from ince.lora.insight.tensor_names import sort_tensors
from ince.lora.insight.updates import read_updates

P = "base_model.model."
WHERE = Path("adapter_model.safetensors")


def read(tensors, **config):
    values = {"peft_type": "LORA", "r": 4, "lora_alpha": 8} | config
    settings = read_settings(values, where=Path("adapter_config.json"))
    named = {P + name: tensor for name, tensor in tensors.items()}
    return read_updates(sort_tensors(named, settings), settings, where=WHERE)


def one(tensors, **config):
    (layer,) = read(tensors, **config).layers
    return layer


def pair(module, a_shape, b_shape):
    return {
        f"{module}.lora_A.weight": torch.randn(a_shape),
        f"{module}.lora_B.weight": torch.randn(b_shape),
    }


def test_a_linear_layer():
    tensors = pair("q", (4, 6), (5, 4)) | {
        "q.lora_B.bias": torch.randn(5),
        "q.lora_magnitude_vector": torch.rand(5),
    }
    layer = one(tensors)
    assert (layer.form, layer.shape, layer.rank, layer.s) == ("linear", (5, 6), 4, 2.0)
    assert layer.num_parameters == 24 + 20 + 5 + 5
    a, b = tensors["q.lora_A.weight"], tensors["q.lora_B.weight"]
    torch.testing.assert_close(layer.factors().delta(), 2.0 * b @ a)
    assert layer.magnitude is not None
    assert layer.bias is not None


def test_an_embedding():
    layer = one({"e.lora_embedding_A": torch.randn(4, 30), "e.lora_embedding_B": torch.randn(6, 4)})
    assert (layer.form, layer.shape) == ("embedding", (6, 30))


def test_a_convolution_and_one_with_groups():
    layer = one(pair("c", (4, 3, 2, 2), (8, 4, 1, 1)))
    assert (layer.form, layer.shape) == ("convolution", (8, 12))
    tensors = pair("c", (4, 6, 3), (8, 2, 1))
    a, b = tensors["c.lora_A.weight"].flatten(1), tensors["c.lora_B.weight"].flatten(1)
    layer = one(tensors)
    assert layer.shape == (8, 18)
    # The first group of outputs sees the first group of ranks alone.
    torch.testing.assert_close(layer.factors().delta()[:4], 2.0 * b[:4] @ a[:2])
    torch.testing.assert_close(layer.factors().delta()[4:], 2.0 * b[4:] @ a[2:])


def test_experts_are_one_update_each():
    num_experts, r = 3, 4
    tensors = pair("l.0.experts", (num_experts * r, 6), (5, r * num_experts))
    a, b = tensors["l.0.experts.lora_A.weight"], tensors["l.0.experts.lora_B.weight"]
    layers = read(tensors, target_parameters=["experts.down_proj"]).layers
    assert [layer.name for layer in layers] == [f"l.0.experts.down_proj[{n}]" for n in range(3)]
    dense = torch.einsum("ore,eri->eoi", b.reshape(5, r, num_experts), a.reshape(num_experts, r, 6))
    for n, layer in enumerate(layers):
        assert layer.expert == n
        torch.testing.assert_close(layer.factors().delta(), 2.0 * dense[n])
    assert sum(layer.num_parameters for layer in layers) == a.numel() + b.numel()


def test_nested_parameters_keep_the_names_of_the_file():
    tensors = pair("l.0.experts", (8, 6), (5, 8)) | pair("l.0.experts.base_layer", (8, 5), (6, 8))
    names = {
        layer.name for layer in read(tensors, target_parameters=["experts.a", "experts.b"]).layers
    }
    assert names == {
        "l.0.experts[0]",
        "l.0.experts[1]",
        "l.0.experts.base_layer[0]",
        "l.0.experts.base_layer[1]",
    }


def test_adalora_has_its_singular_values_between():
    tensors = {
        "q.lora_A": torch.randn(3, 6),
        "q.lora_B": torch.randn(5, 3),
        "q.lora_E": torch.rand(3, 1),
    }
    layer = one(tensors, peft_type="ADALORA", init_r=12, lora_alpha=24)
    dense = tensors["q.lora_B"] @ (tensors["q.lora_E"] * tensors["q.lora_A"]) * 24 / (12 + 1e-5)
    torch.testing.assert_close(layer.factors().delta(), dense)
    assert layer.num_parameters == 18 + 15 + 3


def test_layers_come_in_the_order_of_depth():
    tensors = {}
    for name in ("m.10.q", "m.2.q", "m.2.k"):
        tensors |= pair(name, (4, 6), (5, 4))
    assert [layer.name for layer in read(tensors).layers] == ["m.2.k", "m.2.q", "m.10.q"]


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({"q.lora_A.weight": (4, 6)}, {}, "no B"),
        ({"q.lora_B.weight": (5, 4)}, {}, "no A"),
        ({"q.lora_magnitude_vector": (5,)}, {}, "no A"),
        ({"q.lora_A": (4, 6), "q.lora_B": (5, 4)}, {"peft_type": "ADALORA"}, "no E"),
        ({"q.vera_lambda_b": (5,)}, {"peft_type": "VERA"}, "no lambda d"),
        ({"q.lora_A.weight": (4, 6), "q.lora_B.weight": (5, 3)}, {}, "contradict"),
        ({"q.lora_A.weight": (4,), "q.lora_B.weight": (5, 4)}, {}, "contradict"),
        ({"q.lora_A.weight": (8, 6), "q.lora_B.weight": (5, 8)}, {}, "another rank"),
        (
            {"q.lora_A.weight": (4, 6), "q.lora_B.weight": (5, 4), "q.lora_B.bias": (6,)},
            {},
            "contradict",
        ),
        (
            {"q.lora_A.weight": (4, 6), "q.lora_B.weight": (5, 4), "q.lora_magnitude_vector": (3,)},
            {},
            "contradict",
        ),
        (
            {"q.lora_A": (4, 6), "q.lora_B": (5, 4), "q.lora_E": (3, 1)},
            {"peft_type": "ADALORA"},
            "contradict",
        ),
        (
            {"x.lora_A.weight": (6, 6), "x.lora_B.weight": (5, 6)},
            {"target_parameters": ["x.w"]},
            "contradict",
        ),
    ],
)
def test_what_contradicts_itself_is_an_error_that_names_it(tensors, config, message):
    with pytest.raises(AdapterError, match=message) as caught:
        read({name: torch.randn(shape) for name, shape in tensors.items()}, **config)
    assert next(iter(tensors))[0] in str(caught.value)
