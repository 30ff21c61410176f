import copy
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ince.errors import QuantError
from ince.ops.backends import reference_only
from ince.quant import Linear4bit, NF4Config, expanded

PLAIN = NF4Config(double_quant=False)
FLOAT32 = NF4Config(compute_dtype="float32")
# in_features that are no multiple of a block, an odd number of weights, a single weight.
SIZES = [(64, 8), (96, 20), (33, 5), (1, 1), (576, 130)]


def make_layer(in_features=96, out_features=20, *, bias=True, config=None, seed=0):
    torch.manual_seed(seed)
    linear = nn.Linear(in_features, out_features, bias=bias)
    return Linear4bit.from_linear(linear, config or NF4Config())


@contextmanager
def saved_tensors():
    """Everything that autograd keeps for backward passes inside."""
    found = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t) or t, lambda t: t):
        yield found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("config", [NF4Config(), PLAIN, FLOAT32])
@pytest.mark.parametrize("bias", [True, False])
def test_a_forward_is_the_product_with_the_dequantized_weight(size, config, bias):
    layer = make_layer(*size, bias=bias, config=config)
    dtype = config.torch_dtype
    for x in (torch.randn(3, 7, size[0]), torch.randn(size[0]), torch.randn(0, size[0])):
        offset = None if layer.bias is None else layer.bias.to(dtype)
        expected = F.linear(x.to(dtype), layer.dequantize(), offset).to(x.dtype)
        with reference_only():
            assert torch.equal(layer(x), expected)
        # Kernels take the sums in another order.
        rounding = torch.finfo(dtype).eps * 4
        torch.testing.assert_close(layer(x), expected, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_result_has_the_dtype_of_the_input(dtype):
    x = torch.randn(2, 96).to(dtype)
    assert make_layer()(x).dtype == dtype


@pytest.mark.parametrize("size", SIZES)
def test_the_weight_is_near_the_one_it_came_from(size):
    torch.manual_seed(0)
    linear = nn.Linear(*size)
    layer = Linear4bit.from_linear(linear, NF4Config())
    assert layer.weight_shape == linear.weight.shape
    weight = linear.weight.detach()
    error = (layer.dequantize(torch.float32) - weight).abs().max()
    assert float(error) < 0.17 * float(weight.abs().max())


def test_the_bias_is_a_frozen_copy():
    linear = nn.Linear(8, 4)
    layer = Linear4bit.from_linear(linear, NF4Config())
    assert not layer.bias.requires_grad
    with torch.no_grad():
        linear.bias.add_(1)
    assert not torch.equal(layer.bias, linear.bias)
    assert linear.bias.requires_grad


def test_sizes_are_told():
    layer = make_layer(576, 1536, bias=False)
    assert layer.num_weights == 576 * 1536
    assert round(8 * layer.weight_bytes / layer.num_weights, 3) == 4.127
    assert sum(b.numel() * b.element_size() for b in layer.buffers()) == layer.weight_bytes
    assert "in_features=576, out_features=1536" in repr(layer)
    assert not list(layer.parameters())


# ----------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("config", [NF4Config(), PLAIN, FLOAT32])
def test_gradients_are_those_of_the_dense_layer(size, config):
    layer = make_layer(*size, config=config)
    dtype = config.torch_dtype
    x = torch.randn(2, 3, size[0], dtype=dtype, requires_grad=True)
    y = layer(x)
    grad = torch.randn_like(y)
    y.backward(grad)
    dense_x = x.detach().clone().requires_grad_()
    F.linear(dense_x, layer.dequantize(), layer.bias.to(dtype)).backward(grad)
    assert torch.equal(x.grad, dense_x.grad)
    assert x.grad.dtype == dtype


def test_a_gradient_comes_back_in_the_dtype_of_the_input():
    x = torch.randn(2, 96, requires_grad=True)
    make_layer()(x).sum().backward()
    assert x.grad.dtype == torch.float32


def test_the_gradient_is_the_derivative():
    layer = make_layer(6, 5, config=FLOAT32)
    jacobian = torch.autograd.functional.jacobian(layer, torch.randn(6))
    assert torch.allclose(jacobian, layer.dequantize(), atol=1e-6)


def test_a_bias_that_is_made_to_train_gets_its_gradient():
    layer = make_layer(config=FLOAT32)
    layer.bias.requires_grad_()
    for shape in ((2, 3, 96), (96,)):
        layer.bias.grad = None
        layer(torch.randn(shape)).sum().backward()
        num_rows = torch.Size(shape[:-1]).numel()
        assert torch.allclose(layer.bias.grad, torch.full((20,), float(num_rows)))


def test_only_packed_buffers_are_kept_for_the_backward_pass():
    layer = make_layer()
    x = torch.randn(4, 96, dtype=torch.bfloat16, requires_grad=True)
    with saved_tensors() as found:
        y = layer(x)
    own = {buffer.data_ptr() for buffer in layer.buffers()}
    assert found
    assert {tensor.data_ptr() for tensor in found} <= own
    y.sum().backward()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_is_kept_without_gradients(mode):
    layer = make_layer()
    x = torch.randn(4, 96, requires_grad=True)
    with mode(), saved_tensors() as found:
        y = layer(x)
    assert not y.requires_grad
    assert found == []


def test_an_input_without_gradient_gives_a_result_without():
    with saved_tensors() as found:
        y = make_layer()(torch.randn(4, 96))
    assert not y.requires_grad
    assert found == []


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_it_works_in_a_checkpoint(use_reentrant):
    model = nn.Sequential(make_layer(96, 96), nn.Tanh(), make_layer(96, 20, seed=1))
    x = torch.randn(4, 96, requires_grad=True)
    model(x).sum().backward()
    again = x.detach().clone().requires_grad_()
    checkpoint(model, again, use_reentrant=use_reentrant).sum().backward()
    assert torch.equal(again.grad, x.grad)


def test_it_works_under_autocast():
    layer = make_layer(config=FLOAT32)
    x = torch.randn(4, 96, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x).sum().backward()
    assert x.grad.dtype == torch.float32
    assert bool(x.grad.isfinite().all())


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # PyTorch's
def test_it_compiles_without_a_break():
    layer = make_layer()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 96, requires_grad=True)
    y = compiled(x)
    y.sum().backward()
    assert torch.equal(y, layer(x))


# ------------------------------------------------------------------- nothing changes the weight


def snapshot(layer):
    return {name: tensor.clone() for name, tensor in layer.state_dict().items()}


def test_no_use_changes_what_is_stored():
    layer = make_layer()
    before, places = snapshot(layer), {n: b.data_ptr() for n, b in layer.named_buffers()}
    x = torch.randn(4, 96, requires_grad=True)
    layer.train()(x).sum().backward()
    layer.eval()(x)
    layer.train()(x).sum().backward()
    layer.dequantize().zero_()
    with expanded(layer), torch.no_grad():
        layer(x)
    after = layer.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {n: b.data_ptr() for n, b in layer.named_buffers()} == places


@pytest.mark.parametrize("config", [NF4Config(), PLAIN])
def test_a_cast_of_the_model_leaves_the_scales(config):
    layer = make_layer(config=config)
    before = snapshot(layer)
    for cast in (nn.Module.half, nn.Module.double, nn.Module.float, nn.Module.bfloat16):
        cast(layer)
        for name, buffer in layer.named_buffers():
            assert buffer.dtype == before[name].dtype
            assert torch.equal(buffer, before[name])
    assert layer.bias.dtype == torch.bfloat16


@pytest.mark.parametrize("config", [NF4Config(), PLAIN, NF4Config(blocksize=32)])
@pytest.mark.parametrize("assign", [True, False])
def test_it_loads_its_own_state_strictly(config, assign):
    layer = make_layer(config=config)
    state = snapshot(layer)
    for device in ("meta", "cpu") if assign else ("cpu",):
        fresh = Linear4bit(96, 20, bias=True, config=config, device=device)
        fresh.load_state_dict(state, strict=True, assign=assign)
        x = torch.randn(4, 96)
        assert torch.equal(fresh(x), layer(x))


def test_a_copy_is_independent():
    layer = make_layer()
    twin = copy.deepcopy(layer)
    x = torch.randn(2, 96)
    assert torch.equal(twin(x), layer(x))
    twin.packed.zero_()
    assert layer.packed.any()


def test_a_change_between_the_passes_is_noticed():
    layer = make_layer()
    y = layer(torch.randn(2, 96, requires_grad=True))
    layer.packed.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# ------------------------------------------------------------------------------------ expanded


def test_expanded_results_are_equal_to_the_bit():
    model = nn.Sequential(make_layer(96, 96), nn.Tanh(), make_layer(96, 20, seed=1))
    x = torch.randn(4, 96)
    plain = model(x)
    with expanded(model):
        assert all(layer.is_expanded for layer in (model[0], model[2]))
        assert torch.equal(model(x), plain)
        assert list(model.state_dict()) == list(snapshot(model))
        assert not any("expanded" in name for name in model.state_dict())
    assert not any(layer.is_expanded for layer in (model[0], model[2]))


def test_expanded_is_undone_by_an_exception():
    layer = make_layer()
    with pytest.raises(KeyError), expanded(layer):
        raise KeyError
    assert not layer.is_expanded


def test_expanded_is_undone_when_expanding_fails(monkeypatch):
    model = nn.Sequential(make_layer(96, 96), make_layer(96, 20))

    def fail():
        raise MemoryError

    monkeypatch.setattr(model[1], "dequantize", fail)
    with pytest.raises(MemoryError), expanded(model):
        pass
    assert not model[0].is_expanded


def test_an_inner_expanded_leaves_the_outer_one_alone():
    layer = make_layer()
    with expanded(layer):
        with expanded(layer):
            pass
        assert layer.is_expanded
    assert not layer.is_expanded


def test_gradients_flow_while_expanded():
    layer = make_layer()
    x = torch.randn(4, 96, requires_grad=True)
    layer(x).sum().backward()
    again = x.detach().clone().requires_grad_()
    with expanded(layer):
        layer(again).sum().backward()
    assert torch.equal(again.grad, x.grad)


def test_a_state_that_is_loaded_while_expanded_is_used():
    layer, other = make_layer(), make_layer(seed=5)
    x = torch.randn(2, 96)
    with expanded(layer):
        layer.load_state_dict(other.state_dict())
        assert torch.equal(layer(x), other(x))


def test_moving_while_expanded_moves_all_of_it():
    layer = make_layer()
    with expanded(layer):
        layer.to("meta")
        assert layer(torch.empty(2, 96, device="meta")).device.type == "meta"


# -------------------------------------------------------------------------------------- refused


def test_the_tensor_is_named_when_it_is_refused():
    linear = nn.Linear(64, 2)
    with torch.no_grad():
        linear.weight[1, 3] = float("nan")
    with pytest.raises(QuantError, match="1 of 128 weights") as caught:
        Linear4bit.from_linear(linear, NF4Config(), name="model.layers.3.mlp.up_proj.weight")
    assert caught.value.where == "model.layers.3.mlp.up_proj.weight"


@pytest.mark.parametrize("shape", [(8,), (2, 3, 4), ()])
def test_only_matrices_are_weights(shape):
    with pytest.raises(QuantError, match="not the weight of a linear layer"):
        Linear4bit.from_weight(torch.ones(shape), config=NF4Config())


def test_a_layer_without_weights_is_refused():
    with pytest.raises(QuantError, match="without weights"):
        Linear4bit(0, 4)


def test_a_state_of_another_config_is_refused():
    with pytest.raises(QuantError, match="wrong type") as caught:
        make_layer(config=PLAIN).load_state_dict(make_layer().state_dict())
    assert caught.value.where == "absmax"
