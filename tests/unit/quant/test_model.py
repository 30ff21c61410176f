import pytest
import torch
from torch import nn

from ince.errors import QuantError
from ince.quant import Linear4bit, NF4Config, quantizable_names, quantize_model


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up_proj = nn.Linear(64, 96, bias=False)
        self.down_proj = nn.Linear(96, 64)
        self.norm = nn.LayerNorm(64)

    def forward(self, x):
        return self.norm(x + self.down_proj(torch.relu(self.up_proj(x))))


class Model(nn.Module):
    def __init__(self, *, tied=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 64)
        self.layers = nn.ModuleList([Block(), Block()])
        self.lm_head = nn.Linear(64, 50, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


LINEAR = [f"layers.{i}.{name}_proj" for i in (0, 1) for name in ("up", "down")]


def packed_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, Linear4bit)]


def test_linear_layers_are_replaced_but_the_head():
    model = Model()
    assert quantizable_names(model, NF4Config()) == LINEAR
    quantize_model(model, NF4Config())
    assert packed_names(model) == LINEAR
    assert type(model.lm_head) is nn.Linear
    assert model(torch.arange(6)[None]).shape == (1, 6, 50)


def test_each_layer_is_what_it_would_be_alone():
    model, twin = Model(), Model()
    quantize_model(model, NF4Config())
    for name in LINEAR:
        alone = Linear4bit.from_linear(twin.get_submodule(name), NF4Config())
        layer = model.get_submodule(name)
        assert layer.state_dict().keys() == alone.state_dict().keys()
        assert all(torch.equal(layer.state_dict()[k], t) for k, t in alone.state_dict().items())


def test_a_tied_head_stays_tied():
    model = Model(tied=True)
    # Found by the shared weight, whatever the head is called.
    model.output = model.lm_head
    del model.lm_head
    quantize_model(model, NF4Config())
    assert model.output.weight is model.embed.weight
    assert packed_names(model) == LINEAR


def test_the_head_is_asked_of_the_model():
    model = Model()
    model.get_output_embeddings = lambda: model.layers[1].up_proj
    assert quantizable_names(model, NF4Config()) == [LINEAR[0], LINEAR[1], LINEAR[3], "lm_head"]


@pytest.mark.parametrize(
    ("skipped", "left"),
    [
        (("up_proj",), [LINEAR[1], LINEAR[3]]),
        (("layers.0",), LINEAR[2:]),
        (("layers.1.down_proj", "0.up_proj"), LINEAR[1:3]),
        (("norm",), LINEAR),
    ],
)
def test_named_modules_are_skipped(skipped, left):
    model = Model()
    quantize_model(model, NF4Config(skip_modules=skipped))
    assert packed_names(model) == left


def test_a_name_of_no_module_is_not_ignored():
    with pytest.raises(QuantError, match="not in the model") as caught:
        quantize_model(Model(), NF4Config(skip_modules=("up_prj",)))
    assert caught.value.do == "did you mean 'up_proj'?"


def test_part_of_a_name_is_no_name():
    with pytest.raises(QuantError, match="not in the model"):
        quantizable_names(Model(), NF4Config(skip_modules=("proj",)))


def test_progress_counts_layers():
    seen = []
    quantize_model(Model(), NF4Config(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 4) for n in range(5)]


def test_a_second_time_changes_nothing():
    model = Model()
    quantize_model(model, NF4Config())
    layers = [model.get_submodule(name) for name in LINEAR]
    quantize_model(model, NF4Config())
    assert [model.get_submodule(name) for name in LINEAR] == layers


def test_a_module_in_two_places_becomes_one():
    model = Model()
    model.layers[1].up_proj = model.layers[0].up_proj
    quantize_model(model, NF4Config())
    assert model.layers[1].up_proj is model.layers[0].up_proj
    assert isinstance(model.layers[0].up_proj, Linear4bit)


def test_the_mode_and_other_parameters_stay():
    model = Model().eval()
    model.layers[0].norm.requires_grad_(False)
    quantize_model(model, NF4Config())
    assert not any(module.training for module in model.modules())
    assert not model.layers[0].norm.weight.requires_grad
    assert model.layers[1].norm.weight.requires_grad


def test_subclasses_of_linear_keep_their_own_forward():
    model = Model()
    model.attention = nn.MultiheadAttention(8, 2)  # reads the weight of its linear layer
    assert quantizable_names(model, NF4Config()) == LINEAR


def test_a_model_without_data_is_quantized_in_shape():
    with torch.device("meta"):
        model = Model()
    quantize_model(model, NF4Config())
    assert packed_names(model) == LINEAR
    assert all(buffer.is_meta for buffer in model.buffers())


def test_a_state_dict_makes_the_round_trip():
    model = Model()
    quantize_model(model, NF4Config())
    other = Model()
    quantize_model(other, NF4Config())
    other.load_state_dict(model.state_dict(), strict=True)
    ids = torch.arange(9)[None]
    assert torch.equal(other(ids), model(ids))


# -------------------------------------------------------------------------------------- refused


def test_damaged_weights_are_named_and_the_model_is_left_whole():
    model = Model()
    with torch.no_grad():
        model.layers[0].down_proj.weight[0, :3] = float("inf")
        model.layers[1].up_proj.weight[5, 5] = float("nan")
    with pytest.raises(QuantError, match="2 tensors") as caught:
        quantize_model(model, NF4Config())
    assert caught.value.where == (
        "layers.0.down_proj.weight (3 of 6144), layers.1.up_proj.weight (1 of 6144)"
    )
    assert packed_names(model) == []


def test_fused_experts_are_not_passed_over():
    model = Model()
    model.layers[0].experts = nn.Module()
    model.layers[0].experts.gate_up_proj = nn.Parameter(torch.randn(4, 8, 8))
    with pytest.raises(QuantError, match="neither linear layers") as caught:
        quantize_model(model, NF4Config())
    assert caught.value.where == "layers.0.experts.gate_up_proj"
    assert packed_names(model) == []
    quantize_model(model, NF4Config(skip_modules=("experts",)))
    assert packed_names(model) == LINEAR


def test_convolutions_and_tokens_are_known():
    model = Model()
    model.conv = nn.Conv1d(4, 4, 3)
    model.cls_token = nn.Parameter(torch.randn(1, 1, 64))
    assert quantizable_names(model, NF4Config()) == LINEAR


def test_transposed_linear_layers_are_not_passed_over():
    class Conv1D(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 24))

    model = Model()
    model.c_attn = Conv1D()
    with pytest.raises(QuantError, match="neither linear layers"):
        quantize_model(model, NF4Config())


@pytest.mark.parametrize("model", [nn.Sequential(nn.Embedding(4, 4)), nn.Identity()])
def test_a_model_without_linear_layers_is_refused(model):
    with pytest.raises(QuantError, match="no linear layer"):
        quantize_model(model, NF4Config())


def test_a_lone_layer_is_refused():
    with pytest.raises(QuantError, match="lone linear layer"):
        quantize_model(nn.Linear(4, 4), NF4Config())
