"""PEFT as the oracle for configs that mean the fused experts of a MoE.

What "all-linear", an expression or the names of the experts' own layers mean in transformers 5,
and that files cross over in both directions, to the logits. Every model has random weights.
"""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
from peft.utils import transformers_weight_conversion as theirs_of
from safetensors import safe_open
from transformers import (
    CONFIG_MAPPING,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

import ince.lora
from ince.errors import ConfigError
from ince.lora.placement.fused_experts import MOE_MODELS

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    # PEFT does not look for patterns among parameters, and uses them all the same.
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"),
    # It looks for what is excluded among modules alone.
    pytest.mark.filterwarnings("ignore:You have passed exclude_modules:UserWarning"),
]

shared = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("moe_models.py"))))
IDS, MOE, QWEN = shared.IDS, shared.MOE, shared.QWEN
base, close = shared.base, shared.close
mixtral, qwen3, gpt_oss = shared.mixtral, shared.qwen3, shared.gpt_oss


def qwen3_dense():
    return qwen3(mlp_only_layers=[0])


def qwen2():
    sizes = {"shared_expert_intermediate_size": 8, "decoder_sparse_step": 1}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**QWEN, **sizes))


def deepseek():
    sizes = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
    experts = {"moe_intermediate_size": 12, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
    return DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **{**MOE, "num_key_value_heads": 2},
            **sizes,
            **experts,
            v_head_dim=8,
            first_k_dense_replace=1,
        )
    )


# Configs that mean the same on both sides.
CASES = {
    "mixtral": (mixtral, {"target_modules": "all-linear"}),
    "qwen3": (qwen3, {"target_modules": "all-linear"}),
    # Of the same build, and not in PEFT's list.
    "qwen2": (qwen2, {"target_modules": "all-linear"}),
    "gpt-oss": (gpt_oss, {"target_modules": "all-linear"}),
    "mixtral, scaled": (
        mixtral,
        {
            "target_modules": "all-linear",
            "use_rslora": True,
            "lora_alpha": 6,
            "rank_pattern": {"q_proj": 1, "experts.down_proj": 3},
        },
    ),
    "mixtral, expression": (mixtral, {"target_modules": r".*\.(q_proj|w[123]|gate)"}),
    "mixtral, expression of experts": (mixtral, {"target_modules": r".*\.w[13]"}),
    "mixtral, attention": (mixtral, {"target_modules": r".*\.[qkv]_proj"}),
    "qwen3, expression": (qwen3, {"target_modules": r".*\.(gate|up|down|q)_proj"}),
    "mixtral, names": (mixtral, {"target_modules": ["q_proj", "w1", "w2", "w3", "gate"]}),
    "mixtral, w2": (mixtral, {"target_modules": ["v_proj", "w2"]}),
    "qwen3, names": (qwen3, {"target_modules": ["gate_proj", "up_proj", "down_proj", "gate"]}),
    "qwen3, pair": (qwen3, {"target_modules": ["gate_proj", "up_proj", "o_proj"]}),
    "qwen3, names and a parameter": (
        qwen3,
        {"target_modules": ["q_proj", "down_proj"], "target_parameters": ["gate.weight"]},
    ),
}
# Patterns over layers, experts and all. In a file of PEFT those of `LATER` come after the
# pattern that it adds for pairs, and no longer count for them.
LATER = {r".*layers.0.*": 3}
EARLIER = {r".*1\.(self_attn|mlp).*": 3}
for _name, _make in (("mixtral", mixtral), ("qwen3", qwen3)):
    for _field in ("rank_pattern", "alpha_pattern"):
        CASES[f"{_name}, {_field} over a layer"] = (
            _make,
            {"target_modules": "all-linear", _field: EARLIER},
        )
# PEFT has all of these or none, or cannot read what it wrote.
DIFFER = {
    "rank of the pair": (
        mixtral,
        {"target_modules": "all-linear", "rank_pattern": {"gate_up_proj": 3}},
    ),
    "rank of one pair": (
        mixtral,
        {"target_modules": "all-linear", "rank_pattern": {"1.mlp.experts.gate_up_proj": 3}},
    ),
    "dense layer": (qwen3_dense, {"target_modules": "all-linear"}),
    "dense layer by name": (qwen3_dense, {"target_modules": ["gate_proj", "up_proj"]}),
    "shared experts": (deepseek, {"target_modules": "all-linear"}),
    "some layers": (
        mixtral,
        {"target_modules": ["q_proj", "w1", "w3", "gate"], "layers_to_transform": [0]},
    ),
    "expression of some layers": (
        qwen3,
        {"target_modules": r".*layers\.1\..*(q_proj|down_proj|gate)"},
    ),
    "expression of some attention": (mixtral, {"target_modules": r".*layers\.1\..*q_proj"}),
    "without experts": (mixtral, {"target_modules": "all-linear", "exclude_modules": ["experts"]}),
}
UNREADABLE = {"rank of the pair", "rank of one pair"}
for _name, _make in (("mixtral", mixtral), ("qwen3", qwen3)):
    for _fields in (("rank_pattern",), ("rank_pattern", "alpha_pattern")):
        _case = f"{_name}, later {' and '.join(_fields)}"
        DIFFER[_case] = (_make, {"target_modules": "all-linear", **dict.fromkeys(_fields, LATER)})
        UNREADABLE.add(_case)
ALPHAS = {"mixtral": mixtral, "qwen3": qwen3}
ALL = CASES | DIFFER


def adapted(side, make, values):
    torch.manual_seed(1)
    config = side.LoraConfig(r=2, init_lora_weights=False, **json.loads(json.dumps(values)))
    model = side.get_peft_model(base(make), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.1
    return model


def trained(model):
    return {name: p.shape for name, p in model.named_parameters() if p.requires_grad}


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def shapes(folder):
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def config_of(folder):
    values = json.loads((folder / "adapter_config.json").read_text())
    for key in ("target_modules", "target_parameters"):
        values[key] = set(values[key] or ())
    return values


@pytest.mark.parametrize("case", CASES)
def test_a_config_means_what_it_means_there(tmp_path, case):
    ours, theirs = (adapted(side, *CASES[case]) for side in (ince.lora, peft))
    assert trained(ours) == trained(theirs)
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
    for model, folder in ((ours, tmp_path / "ours"), (theirs, tmp_path / "theirs")):
        model.save_pretrained(folder)
    assert shapes(tmp_path / "ours") == shapes(tmp_path / "theirs")
    one, other = (config_of(tmp_path / side) for side in ("ours", "theirs"))
    if ours.config.model_type not in MOE_MODELS:
        for each in (one, other):  # listed in full or short; what they mean is compared above
            each.pop("target_modules")
    assert one == other


@pytest.mark.parametrize("case", ALL)
def test_files_cross_over(tmp_path, case):
    make, values = ALL[case]
    plain = logits(base(make))
    for side, other in ((ince.lora, peft), (peft, ince.lora)):
        model = adapted(side, make, values)
        assert (logits(model) - plain).abs().max() > 1e-3
        folder = tmp_path / side.__name__
        model.save_pretrained(folder)
        loaded = other.PeftModel.from_pretrained(base(make), folder)
        close(logits(loaded), logits(model))
        close(logits(loaded.merge_and_unload()), logits(model))


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        ("dense layer", {"layers.0.mlp.gate_proj", "layers.0.mlp.down_proj", "layers.1.mlp.gate"}),
        ("dense layer by name", {"layers.0.mlp.up_proj", "layers.0.mlp.gate_proj"}),
        ("shared experts", {"layers.0.mlp.up_proj", "layers.1.mlp.shared_experts.up_proj"}),
    ],
)
def test_layers_of_the_experts_names_are_kept(case, wanted):
    ours, theirs = (trained(adapted(side, *DIFFER[case])) for side in (ince.lora, peft))
    assert theirs.items() < ours.items()
    names = {name.partition(".lora_")[0].removeprefix("base_model.model.model.") for name in ours}
    assert wanted < names


@pytest.mark.parametrize(
    ("case", "absent"),
    [
        ("some layers", "layers.1."),
        ("expression of some layers", "layers.0."),
        ("expression of some attention", "layers.0."),
        ("without experts", "experts"),
    ],
)
def test_what_is_left_out_stays_out(case, absent):
    ours, theirs = (trained(adapted(side, *DIFFER[case])) for side in (ince.lora, peft))
    assert ours.items() < theirs.items()
    assert not any(absent in name for name in ours)
    assert {name for name in theirs if absent not in name} == set(ours)


@pytest.mark.parametrize(
    ("make", "names", "missing"),
    [
        (mixtral, ["q_proj", "w1"], "add 'w3'"),
        (mixtral, ["w3", "w2"], "add 'w1'"),
        (mixtral, r".*\.w1", "add 'w3'"),
        (qwen3, ["up_proj", "down_proj"], "add 'gate_proj'"),
        (qwen3, r".*\.(gate|gate_proj)", "add 'up_proj'"),
    ],
)
def test_one_of_two_that_are_fused(make, names, missing):
    with pytest.raises(ValueError, match="fused"):
        peft.get_peft_model(base(make), peft.LoraConfig(target_modules=names))
    model = base(make)
    plain = logits(model)
    with pytest.raises(ConfigError, match=missing):
        ince.lora.get_peft_model(model, ince.lora.LoraConfig(target_modules=names))
    assert logits(model).equal(plain)


@pytest.mark.parametrize(
    "values", [{"use_dora": True}, {"init_lora_weights": "olora"}, {"lora_bias": True}]
)
def test_options_for_layers_are_refused(values):
    config = ince.lora.LoraConfig(target_modules="all-linear", **values)
    with pytest.raises(ConfigError, match="exclude_modules"):
        ince.lora.get_peft_model(base(mixtral), config)
    without = config.model_copy(update={"exclude_modules": ("experts", "gate")})
    ince.lora.get_peft_model(base(mixtral), without)


@pytest.mark.parametrize("case", sorted(UNREADABLE))
def test_a_rank_of_the_configs_own(tmp_path, case):
    make, values = DIFFER[case]
    ours, theirs = (adapted(side, make, values) for side in (ince.lora, peft))
    assert trained(ours) == trained(theirs)
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
    for model, folder in ((ours, tmp_path / "ours"), (theirs, tmp_path / "theirs")):
        model.save_pretrained(folder)
    assert shapes(tmp_path / "ours") == shapes(tmp_path / "theirs")
    with pytest.raises(RuntimeError, match="size mismatch"):
        peft.PeftModel.from_pretrained(base(make), tmp_path / "theirs")
    # What is read from that file is written so that PEFT can read it.
    again = ince.lora.PeftModel.from_pretrained(base(make), tmp_path / "theirs")
    again.save_pretrained(tmp_path / "again")
    read = peft.PeftModel.from_pretrained(base(make), tmp_path / "again")
    close(logits(read), logits(theirs))


@pytest.mark.parametrize("name", ALPHAS)
def test_an_alpha_that_comes_later_in_a_file(tmp_path, name):
    make, values = ALPHAS[name], {"target_modules": "all-linear", "alpha_pattern": LATER}
    ours, theirs = (adapted(side, make, values) for side in (ince.lora, peft))
    assert trained(ours) == trained(theirs)
    ours.save_pretrained(tmp_path / "ours")
    close(logits(peft.PeftModel.from_pretrained(base(make), tmp_path / "ours")), logits(ours))
    theirs.save_pretrained(tmp_path / "theirs")
    # No tensor tells: the file means what it means to PEFT, which is not what was trained.
    one, other = (
        side.PeftModel.from_pretrained(base(make), tmp_path / "theirs")
        for side in (ince.lora, peft)
    )
    close(logits(one), logits(other))


def test_the_models_are_those_of_peft():
    of_peft = {
        kind: theirs_of._MOE_TARGET_MODULE_MAPPING[build]
        for kind, build in theirs_of._MODEL_TO_CONVERSION_PATTERN.items()
        if build in theirs_of._MOE_TARGET_MODULE_MAPPING and kind in CONFIG_MAPPING
    }
    assert {kind: {"gate": "gate.weight", **names} for kind, names in MOE_MODELS.items()} == of_peft
