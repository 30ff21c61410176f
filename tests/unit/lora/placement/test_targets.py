"""Which layers a config means; what it says when it means none."""

import pytest
from torch import nn

from ince.errors import ConfigError
from ince.lora import LoraConfig, LoraLayer
from ince.lora.placement.targets import find_targets, resolve


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(8, 8)
        self.v_proj = nn.Linear(8, 4)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = Attention()
        self.mlp = nn.ModuleDict({"up": nn.Linear(8, 16), "down": nn.Linear(16, 8)})
        self.norm = nn.LayerNorm(8)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(8, 10)

    def get_output_embeddings(self):
        return self.head


def names(strict=True, **values):
    return [t.name for t in find_targets(Decoder(), LoraConfig(**values), strict=strict)]


def message(**values):
    with pytest.raises(ConfigError) as caught:
        names(**values)
    return str(caught.value)


def test_all_linear_is_every_linear_layer_but_the_head():
    found = names(target_modules="all-linear")
    assert len(found) == 12
    assert "head" not in found
    assert found[:2] == ["layers.0.attn.q_proj", "layers.0.attn.v_proj"]


def test_nothing_said_is_q_and_v():
    assert names() == names(target_modules=["q_proj", "v_proj"])


def test_names_match_whole_or_as_a_dotted_suffix():
    assert names(target_modules=["layers.1.attn.q_proj"]) == ["layers.1.attn.q_proj"]
    assert len(names(target_modules=["attn.q_proj"])) == 3
    assert names(target_modules=["head"]) == ["head"]
    assert "matches no module" in message(target_modules=["proj"])


def test_a_string_is_a_regular_expression_for_the_whole_name():
    assert names(target_modules=r"layers\.[02]\.attn\.v_proj") == [
        "layers.0.attn.v_proj",
        "layers.2.attn.v_proj",
    ]
    assert "touches no module" in message(target_modules="q_proj")


def test_excluded_modules():
    assert names(target_modules="all-linear", exclude_modules=["mlp.up", "down"]) == names()
    assert names(target_modules=["q_proj"], exclude_modules=r"layers\.[01].*") == [
        "layers.2.attn.q_proj"
    ]
    assert "touches no module" in message(target_modules=["q_proj"], exclude_modules=["q_proj"])


def test_layer_numbers():
    assert names(target_modules=["q_proj"], layers_to_transform=1) == ["layers.1.attn.q_proj"]
    chosen = names(target_modules=["q_proj"], layers_to_transform=[0, 2], layers_pattern="layers")
    assert chosen == ["layers.0.attn.q_proj", "layers.2.attn.q_proj"]
    assert "there is no layer 7" in message(target_modules=["q_proj"], layers_to_transform=[0, 7])


def test_ranks_and_alphas_by_pattern():
    config = LoraConfig(
        r=2,
        lora_alpha=4,
        target_modules=["q_proj", "v_proj"],
        rank_pattern={r"layers\.0\.attn\.q_proj": 8, "v_proj": 1},
        alpha_pattern={"layers.[12].attn.v_proj": 5},
    )
    found = {t.name: (t.spec.r, t.spec.alpha) for t in find_targets(Decoder(), config)}
    assert found["layers.0.attn.q_proj"] == (8, 4)
    assert found["layers.1.attn.q_proj"] == (2, 4)
    assert found["layers.0.attn.v_proj"] == (1, 4)
    assert found["layers.1.attn.v_proj"] == (1, 5)
    assert "matches none of the target modules" in message(rank_pattern={"q_prj": 3})


def test_unknown_names_show_the_nearest_and_what_there_is():
    text = message(target_modules=["q_prj", "v_proj", "dwn"], exclude_modules=["hed"])
    assert "'q_prj' matches no module (did you mean 'q_proj'?)" in text
    assert "did you mean 'down'?" in text
    assert "did you mean 'head'?" in text
    assert "down, embed, head, q_proj, up, v_proj" in text


def test_lenient_reading_needs_one_match():
    assert len(names(strict=False, target_modules=["q_proj", "c_attn"])) == 3
    with pytest.raises(ConfigError, match="touches no module"):
        names(strict=False, target_modules=["c_attn"])


@pytest.mark.parametrize("name", ["attn", "norm"])
def test_what_cannot_be_adapted_is_refused_by_name(name):
    text = message(target_modules=[name])
    assert "cannot be adapted" in text
    assert "which LoRA does not adapt" in text


def test_subclasses_of_linear_are_refused_rather_than_skipped():
    model = nn.MultiheadAttention(4, 1)
    with pytest.raises(ConfigError, match="put it in exclude_modules"):
        find_targets(model, LoraConfig(target_modules="all-linear"))


def test_adapted_layers_are_seen_as_one():
    model = Decoder()
    attention = model.layers[0].attn
    attention.q_proj = LoraLayer(attention.q_proj)
    found = find_targets(model, LoraConfig(target_modules="all-linear"))
    assert len(found) == 12
    assert isinstance(found[0].layer, LoraLayer)


def test_all_linear_resolves_to_short_names_where_they_mean_the_same():
    model = Decoder()
    config = LoraConfig(target_modules="all-linear")
    short = resolve(model, config, find_targets(model, config))
    assert short.target_modules == ("down", "q_proj", "up", "v_proj")
    model.v_proj = nn.Identity()
    model.get_output_embeddings = lambda: model.layers[2].mlp["down"]
    config = LoraConfig(target_modules="all-linear", exclude_modules=["head"])
    full = resolve(model, config, find_targets(model, config))
    assert "layers.0.attn.q_proj" in full.target_modules
    assert find_targets(model, full) == find_targets(model, config)


def test_a_rank_above_both_sides_is_refused():
    text = message(target_modules=["q_proj"], r=9)
    assert "layers.0.attn.q_proj: has a rank of at most 8, not 9" in text
    assert "rank_pattern" in text
    # A gate of few outputs shares the rank of its neighbors; and files are as they are.
    assert len(names(target_modules=["v_proj"], r=8)) == 3
    assert len(names(strict=False, target_modules=["q_proj"], r=9)) == 3


def test_what_a_layer_cannot_carry_is_refused_by_name_before_anything_changes():
    text = message(target_modules=["q_proj", "embed"], lora_bias=True)
    assert "embed: is an embedding, which takes no lora_bias" in text
    assert "q_proj:" not in text
    model = nn.ModuleDict({"conv": nn.Conv1d(4, 4, 3, groups=2)})
    for values, what in (({"r": 3}, "do not divide the rank 3"), ({"use_dora": True}, "use_dora")):
        with pytest.raises(ConfigError, match=what):
            find_targets(model, LoraConfig(target_modules=["conv"], **({"r": 4} | values)))


def test_what_is_trained_whole_gets_no_update():
    found = names(target_modules="all-linear", modules_to_save=["attn", "head"])
    assert len(found) == 6
    assert all(".mlp." in name for name in found)


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [("bert", {"query"}), ("phi", {"q_proj", "fc1"}), ("strange", {"q_proj"}), (None, {"q_proj"})],
)
def test_what_is_usual_for_the_type_of_the_model(model_type, expected):
    model = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("query", "q_proj", "fc1")})
    model.config = {} if model_type is None else {"model_type": model_type}
    config = LoraConfig()
    found = find_targets(model, config)
    assert {target.name for target in found} == expected
    assert set(resolve(model, config, found).target_modules) >= expected


def test_parameters_alone_may_be_targeted():
    model = nn.ModuleDict({"q_proj": nn.Linear(8, 8)})
    config = LoraConfig(target_parameters=["experts.up"])
    assert find_targets(model, config) == []
    assert resolve(model, config, []).target_modules is None


def test_the_head_of_a_classifier_is_no_linear_layer_to_adapt():
    model = nn.ModuleDict({"score": nn.Linear(8, 2), "dense": nn.Linear(8, 8)})
    config = LoraConfig(target_modules="all-linear", task_type="SEQ_CLS")
    assert [target.name for target in find_targets(model, config)] == ["dense"]


def test_the_layout_of_the_weights_is_seen_and_not_asked():
    from transformers.pytorch_utils import Conv1D

    model = nn.ModuleDict({"up": Conv1D(8, 8), "down": nn.Linear(8, 8)})
    for given in (True, False):
        for names, expected in ((["up"], True), (["down"], False), (["down", "up"], False)):
            config = LoraConfig(target_modules=names, fan_in_fan_out=given)
            resolved = resolve(model, config, find_targets(model, config))
            assert resolved.fan_in_fan_out is expected
    model = nn.ModuleDict({"embed": nn.Embedding(8, 8)})
    config = LoraConfig(target_modules=["embed"], fan_in_fan_out=True)
    assert resolve(model, config, find_targets(model, config)).fan_in_fan_out is True
