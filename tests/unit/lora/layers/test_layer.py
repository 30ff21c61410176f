"""One adapted layer: what it computes, what it leaves alone, what it merges to."""

import pytest
import torch
from torch import nn

from ince.errors import AdapterError
from ince.lora import LoraConfig
from ince.lora.layers.adapted import outer_modules
from ince.lora.layers.layer import LoraLayer
from ince.lora.layers.spec import AdapterSpec
from ince.lora.placement.start import start_adapter


def adapted(base, *, r, alpha=4, scaling=2.0, dropout=0.0, init=False):
    module = LoraLayer(base)
    module.add_adapter("default", AdapterSpec(r, alpha, scaling, dropout))
    start_adapter(module, "default", LoraConfig(r=r, init_lora_weights=init))
    module.state.active = ("default",)
    return module


def layer(dtype=torch.float32, *, init=False, dropout=0.0, bias=True):
    torch.manual_seed(0)
    base = nn.Linear(6, 4, bias=bias, dtype=dtype).requires_grad_(False)
    return adapted(base, r=2, dropout=dropout, init=init)


def by_hand(module, x):
    a, b = module.factor_parameters("default")
    return module.base_layer(x) + 2.0 * (x @ a.t()) @ b.t()


def test_output_is_the_base_plus_the_scaled_update():
    module, x = layer(), torch.randn(3, 6)
    torch.testing.assert_close(module(x), by_hand(module, x))
    with torch.no_grad():
        torch.testing.assert_close(module(x), by_hand(module, x))


def test_a_fresh_adapter_is_the_identity():
    for init in (True, "gaussian"):
        module, x = layer(init=init), torch.randn(3, 6)
        assert torch.equal(module(x), module.base_layer(x))


def test_initializations_have_the_spread_they_promise():
    torch.manual_seed(0)
    base = nn.Linear(400, 8).requires_grad_(False)
    uniform = adapted(base, r=64, init=True).factor_parameters("default")[0]
    assert uniform.abs().max() <= 1 / 20  # 1/sqrt(400)
    assert uniform.std().item() == pytest.approx((1 / 20) / 3**0.5, rel=0.02)
    normal = adapted(base, r=64, init="gaussian")
    assert normal.factor_parameters("default")[0].std().item() == pytest.approx(1 / 64, rel=0.02)
    assert not normal.factor_parameters("default")[1].any()


def test_the_same_seed_gives_the_same_adapter():
    assert torch.equal(
        layer().factor_parameters("default")[0], layer().factor_parameters("default")[0]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_in_is_dtype_out_and_factors_stay_float32(dtype):
    module = layer(dtype)
    x = torch.randn(3, 6, dtype=dtype, requires_grad=True)
    y = module(x)
    assert y.dtype == dtype
    y.sum().backward()
    for factor in module.factor_parameters("default"):
        assert factor.dtype == torch.float32
        assert factor.grad is not None
        assert factor.grad.dtype == torch.float32


def test_the_base_takes_no_gradient_and_is_never_changed():
    module = layer(dropout=0.5)
    before = {k: v.clone() for k, v in module.base_layer.state_dict().items()}
    module.train()
    module(torch.randn(3, 6)).sum().backward()
    module.eval()
    module(torch.randn(3, 6))
    module.merged_weight(torch.float32)
    for name, tensor in module.base_layer.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert module.base_layer.weight.grad is None


def test_a_base_that_trains_gets_its_gradient():
    module = layer()
    module.base_layer.weight.requires_grad_(True)
    x = torch.randn(3, 6)
    module(x).sum().backward()
    torch.testing.assert_close(module.base_layer.weight.grad, x.sum(0).expand(4, 6))


def test_autocast_computes_in_16_bits():
    module, x = layer(), torch.randn(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), by_hand(module, x), rtol=0.05, atol=0.05)


def test_dropout_is_on_in_training_only_and_keeps_the_mean():
    module = layer(dropout=0.5)
    module.eval()
    x = torch.randn(2, 6)
    torch.testing.assert_close(module(x), by_hand(module, x))
    module.train()
    torch.manual_seed(1)
    many = module(x.expand(20000, 2, 6))
    assert not torch.equal(many[0], many[1])
    torch.testing.assert_close(many.mean(0), by_hand(module, x), rtol=0, atol=0.05)
    with torch.no_grad():
        assert not torch.equal(module(x), by_hand(module, x))


def test_merged_weight_is_rounded_once_and_new():
    module = layer(torch.bfloat16)
    a, b = module.factor_parameters("default")
    exact = module.base_layer.weight.float() + 2.0 * b @ a
    merged = module.merged_weight(torch.bfloat16)
    wide = module.merged_weight(torch.float32)
    torch.testing.assert_close(wide, exact.detach())
    assert torch.equal(merged, wide.bfloat16())
    torch.testing.assert_close(module.get_delta_weight("default"), 2.0 * b @ a)
    merged.zero_()
    assert module.base_layer.weight.any()


def test_merging_without_an_adapter_still_copies():
    module = layer(torch.float32)
    module.state.active = ()
    merged = module.merged_weight(torch.float32)
    assert torch.equal(merged, module.base_layer.weight)
    assert merged.data_ptr() != module.base_layer.weight.data_ptr()


def test_a_merge_that_overflows_is_refused():
    module = layer()
    with torch.no_grad():
        module.factor_parameters("default")[1].fill_(1e38)
    with pytest.raises(AdapterError, match="not finite"):
        module.merged_weight(torch.float16)


def test_disabled_or_absent_adapters_leave_the_base():
    module, x = layer(), torch.randn(2, 6)
    base = module.base_layer(x)
    module.state.disabled = True
    assert torch.equal(module(x), base)
    module.state.disabled = False
    module.state.active = ("other",)
    assert torch.equal(module(x), base)


def test_outer_modules_stop_at_adapted_layers():
    model = nn.Sequential(layer(), nn.ReLU())
    assert [name for name, _ in outer_modules(model)] == ["", "0", "1"]
