"""Adapters of a model: added, switched, deleted, merged, combined; and nothing half-done."""

import copy

import pytest
import torch
from torch import nn

from ince.errors import AdapterError, ConfigError
from ince.lora import LoraConfig, LoraLayer, LoraModel, adapter_tensors, get_peft_model


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model, before):
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[k], before[k]) for k in before)


def test_it_stands_alone(llama, lora, logits):
    tuner = LoraModel(llama(), {"a": lora(), "b": lora(r=3)})
    assert list(tuner.peft_config) == ["a", "b"]
    assert tuner.active_adapter == "a"
    tuner.set_adapter(["b", "a"])
    assert tuner.active_adapter == ["b", "a"]
    assert logits(tuner).isfinite().all()
    assert tuner.config is tuner.get_base_model().config


def test_all_layers_share_one_state_even_after_the_last_adapter_went(model, lora, logits, llama):
    for name in ("default", "b", "c"):
        model.delete_adapter(name)
    assert torch.equal(logits(model), logits(llama()))
    assert not any(isinstance(module, LoraLayer) for module in model.modules())
    with model.disable_adapter():
        model.add_adapter("new", lora())
        assert torch.equal(logits(model), logits(llama()))
    assert model.active_adapters == ["new"]
    assert not torch.equal(logits(model), logits(llama()))
    with pytest.raises(AdapterError, match="no adapter is named"):
        model.set_adapter([])


def test_without_an_adapter_what_needs_one_says_so(model):
    for name in ("default", "b", "c"):
        model.delete_adapter(name)
    for ask in (lambda: model.active_adapter, lambda: model.active_peft_config):
        with pytest.raises(AdapterError, match="no adapter is left"):
            ask()
    with pytest.raises(AdapterError, match="has no adapter 'b'"):
        model.set_adapter("b")


@pytest.mark.parametrize("operation", ["set_adapter", "delete_adapter", "set_requires_grad"])
def test_unknown_names_show_the_nearest(model, operation):
    before = state(model)
    with pytest.raises(AdapterError, match="did you mean 'default'"):
        getattr(model, operation)("defaults")
    assert unchanged(model, before)
    assert model.active_adapters == ["default"]


def test_several_active_ones_add_up(model):
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    x = torch.randn(3, 16)
    base = layer.base_layer(x)
    parts = []
    for name in ("default", "b", "c"):
        model.set_adapter(name)
        parts.append(layer(x) - base)
    model.set_adapter(["c", "default", "b"])
    torch.testing.assert_close(layer(x), base + sum(parts))
    model.set_adapter(["b", "b"])
    assert model.active_adapters == ["b"]


def test_two_copies_of_a_whole_module_cannot_be_active_together(llama, lora):
    model = get_peft_model(llama(), lora(modules_to_save=["lm_head"]))
    model.add_adapter("b", lora(modules_to_save=["lm_head"]))
    with pytest.raises(AdapterError, match="cannot be active together"):
        model.set_adapter(["default", "b"])
    assert model.active_adapters == ["default"]
    model.set_adapter("b")


def test_gradients_follow_what_is_active(model):
    def trained():
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        return {name.split(".")[-2] for name in names}

    assert trained() == {"default"}
    model.set_adapter(["b", "c"])
    assert trained() == {"b", "c"}
    model.set_requires_grad("default")
    assert trained() == {"default", "b", "c"}
    model.set_adapter("c", inference_mode=True)
    assert trained() == set()


# ------------------------------------------------------------------------------------- merging


def test_merged_in_place_the_base_stays(model, logits):
    adapted = logits(model)
    before = state(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), adapted)
    assert unchanged(model, before)
    with model.disable_adapter():
        assert not torch.allclose(logits(model), adapted)
    model.unmerge_adapter()
    assert torch.equal(logits(model), adapted)
    assert unchanged(model, before)


def test_a_merge_that_fails_leaves_all_layers(model, logits):
    before = logits(model)
    last = [layer for layer in model.modules() if isinstance(layer, LoraLayer)][-1]
    with torch.no_grad():
        last.tensors("b")["lora_B.weight"].fill_(torch.inf) if "b" in last.specs else None
        for layer in model.modules():
            if isinstance(layer, LoraLayer) and "c" in layer.specs:
                late = layer
        late.tensors("c")["lora_B.weight"].fill_(torch.inf)
    model.merge_adapter(["default"])
    with pytest.raises(AdapterError, match="not finite"):
        model.merge_adapter(["c"])
    assert model.base_model.merged_adapters == ["default"]
    torch.testing.assert_close(logits(model), before)
    model.unmerge_adapter()
    with pytest.raises(AdapterError, match="not finite"):
        model.merge_adapter(["c"])
    assert model.base_model.merged_adapters == []
    assert torch.equal(logits(model), before)


def test_names_to_merge_are_a_list(model):
    for operation in (model.merge_adapter, lambda name: model.merge_and_unload(adapter_names=name)):
        with pytest.raises(AdapterError, match="not a list"):
            operation("b")
        with pytest.raises(AdapterError, match="has no adapter 'x'"):
            operation(["x"])


def test_merged_and_unloaded_is_another_model(model, logits):
    before, adapted = state(model), logits(model)
    with model.disable_adapter():
        merged = model.merge_and_unload(progressbar=True, safe_merge=True)
        assert not torch.allclose(logits(model), adapted)
    torch.testing.assert_close(logits(merged), adapted)
    assert unchanged(model, before)
    assert torch.equal(logits(model), adapted)
    assert model.merge_and_unload(dtype=torch.bfloat16).dtype == torch.bfloat16
    model.set_adapter(["b", "c"])
    torch.testing.assert_close(
        logits(model), logits(model.merge_and_unload(adapter_names=["b", "c"]))
    )


def test_unloaded_the_base_is_restored_to_the_bit(llama, model, logits):
    base = model.get_base_model()
    assert model.unload() is base
    plain = llama().state_dict()
    assert base.state_dict().keys() == plain.keys()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in base.state_dict().items())
    assert torch.equal(logits(base), logits(llama()))
    assert model.peft_config == {}
    again = get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
    assert again.active_adapter == "default"


def test_a_copy_is_another_model(model, logits):
    before = logits(model)
    copied = copy.deepcopy(model)
    assert torch.equal(logits(copied), before)
    copied.set_adapter("b")
    copied.delete_adapter("default")
    with copied.disable_adapter():
        assert torch.equal(logits(model), before)
    assert model.active_adapters == ["default"]


# ----------------------------------------------------------------------------------- combining


def test_a_combination_is_neither_active_nor_trained(model, logits):
    before = logits(model)
    model.add_weighted_adapter(["default", "b"], [1.0, 1.0], "sum", "cat")
    assert model.active_adapters == ["default"]
    assert torch.equal(logits(model), before)
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".sum." in n)
    model.set_adapter(["default", "b"])
    wanted = logits(model)
    model.set_adapter("sum")
    torch.testing.assert_close(logits(model), wanted)
    assert all(p.requires_grad for n, p in model.named_parameters() if ".sum." in n)


@pytest.mark.parametrize(
    ("arguments", "kind", "match"),
    [
        ((["default", "x"], [1, 1], "new"), AdapterError, "no adapter of this name"),
        ((["default"], [1, 1], "new"), ConfigError, "2 weights for 1 adapters"),
        ((["default", "b"], [1, 1], "new", "linear"), AdapterError, "different ranks"),
        ((["default", "b"], [1, 1], "new", "sum"), ConfigError, "combination_type"),
        ((["default", "b"], [1, 1], "new", "ties"), ConfigError, "density"),
        ((["default", "b"], [1, torch.nan], "new"), ConfigError, "finite"),
        (([], [], "new"), AdapterError, "no adapters to combine"),
        ((["default", "b"], [1, 1], "a/b"), AdapterError, "not a usable adapter name"),
        ((["default", "b"], [1, 1], "c"), AdapterError, "'c' already"),
    ],
)
def test_combinations_that_cannot_be_leave_the_model(model, arguments, kind, match):
    before = state(model)
    with pytest.raises(kind, match=match):
        model.add_weighted_adapter(*arguments)
    assert unchanged(model, before)
    assert list(model.peft_config) == ["default", "b", "c"]


def test_combined_over_other_layers_the_targets_are_all_of_them(llama, lora, logits, tmp_path):
    model = get_peft_model(llama(), lora(layers_to_transform=[0]))
    model.add_adapter("b", lora(layers_to_transform=[1], target_modules=["k_proj"]))
    model.add_weighted_adapter(["default", "b"], [0.5, 2], "new", "cat")
    layers = [name for name, module in model.named_modules() if name.endswith("lora_A.new")]
    assert len(layers) == 3
    model.set_adapter("new")
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(llama(), tmp_path / "new")
    assert torch.equal(logits(again), logits(model))


def test_a_list_and_a_pattern_combine(llama, lora, logits, tmp_path):
    model = get_peft_model(llama(), lora())
    model.add_adapter("b", lora(target_modules=r".*\.1\..*k_proj"))
    model.add_weighted_adapter(["default", "b"], [1, 1], "new", "cat")
    model.set_adapter("new")
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(llama(), tmp_path / "new")
    assert torch.equal(logits(again), logits(model))


def test_rank_stabilized_adapters_combine_at_their_scale(llama, lora, logits):
    model = get_peft_model(llama(), lora(r=4, use_rslora=True))
    before = logits(model)
    model.add_weighted_adapter(["default"], [1.0], "same")
    model.set_adapter("same")
    torch.testing.assert_close(logits(model), before)


@pytest.mark.parametrize("kind", ["cat", "svd", "linear"])
def test_convolutions_and_embeddings_combine(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 6)
            self.conv = nn.Conv1d(6, 5, 3)

        def forward(self, ids):
            return self.conv(self.embed(ids).transpose(1, 2))

    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["embed", "conv"], init_lora_weights=False)
    model = get_peft_model(Net(), config)
    model.add_adapter("b", config)
    model.add_weighted_adapter(["default", "b"], [0.3, -2], "new", kind, svd_rank=4)
    parts = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    for layer in parts:
        wanted = 0.3 * layer.get_delta_weight("default") - 2 * layer.get_delta_weight("b")
        if kind != "linear":
            torch.testing.assert_close(layer.get_delta_weight("new"), wanted)
    model.set_adapter("new")
    assert model(torch.tensor([[1, 2, 3, 4]])).isfinite().all()


@pytest.mark.parametrize(
    ("values", "match"),
    [({"use_dora": True}, "magnitude"), ({"lora_bias": True}, "a bias")],
)
def test_what_is_no_plain_update_is_not_combined(llama, lora, values, match):
    model = get_peft_model(llama(), lora(**values))
    with pytest.raises(AdapterError, match=match):
        model.add_weighted_adapter(["default"], [1.0], "new")
    with pytest.raises(AdapterError, match=match):
        model.reduce_rank("default", "new", r=1)


def test_a_whole_module_of_one_adapter_is_taken_over(llama, lora, logits):
    model = get_peft_model(llama(), lora(modules_to_save=["lm_head"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(2)
    before = logits(model)
    model.add_adapter("b", lora())
    model.add_weighted_adapter(["b", "default"], [0.0, 1.0], "new", "cat")
    assert model.peft_config["new"].modules_to_save == ("lm_head",)
    model.set_adapter("new")
    torch.testing.assert_close(logits(model), before)
    model.add_weighted_adapter(["default"], [1.0], "one", "linear")
    with pytest.raises(AdapterError, match="their own weights for a module"):
        model.add_weighted_adapter(["default", "new"], [1.0, 1.0], "x", "cat")


# ---------------------------------------------------------------------------------------- rank


def test_the_full_rank_is_the_same_adapter(llama, lora, logits, tmp_path):
    model = get_peft_model(llama(), lora(r=4, lora_alpha=3, rank_pattern={"v_proj": 2}))
    before = logits(model)
    assert set(model.reduce_rank("default", "same", energy=1.0).values()) == {4, 2}
    assert torch.equal(logits(model), before)
    model.set_adapter("same")
    torch.testing.assert_close(logits(model), before)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(llama(), tmp_path / "same")
    assert torch.equal(logits(again), logits(model))


def test_every_layer_gets_the_nearest_update_of_its_rank(llama, lora):
    model = get_peft_model(llama(), lora(r=6, use_rslora=True, target_modules="all-linear"))
    ranks = model.reduce_rank("default", "less", r=4, energy=0.8)
    assert model.peft_config["less"].r in ranks.values()
    assert max(ranks.values()) <= 4
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            assert layer.r["less"] == ranks[name]
            full, less = layer.get_delta_weight("default"), layer.get_delta_weight("less")
            tail = torch.linalg.svdvals(full)[ranks[name] :]
            torch.testing.assert_close((full - less).norm(), tail.norm(), rtol=1e-3, atol=1e-5)


def test_a_rank_must_be_asked_for(model):
    before = state(model)
    for values in ({}, {"r": 0}, {"energy": 2.0}):
        with pytest.raises(ConfigError):
            model.reduce_rank("default", "new", **values)
    with pytest.raises(AdapterError, match="already"):
        model.reduce_rank("default", "b", r=1)
    with pytest.raises(AdapterError, match="did you mean"):
        model.reduce_rank("defaut", "new", r=1)
    assert unchanged(model, before)


def test_a_start_that_is_taken_off_counts_in_what_is_combined(llama, lora, logits):
    model = get_peft_model(llama(), lora(target_modules=["q_proj"]))
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:
        layer.set_start("default", torch.randn(2, 16), torch.randn(16, 2))
    before = logits(model)
    model.add_weighted_adapter(["default"], [1.0], "plain", "cat")
    assert model.peft_config["plain"].r == 4
    model.set_adapter("plain")
    torch.testing.assert_close(logits(model), before)
    assert len(adapter_tensors(model.get_base_model(), "plain")) == 4
