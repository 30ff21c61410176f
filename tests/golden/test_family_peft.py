"""PEFT as the oracle for LoRA's relatives: VeRA, AdaLoRA, LoRA+ and LoRA-FA.

Adapters cross over in both directions, and training does the same on either side.
"""

import json
import math

import peft
import pytest
import torch
from peft.optimizers import create_lorafa_optimizer as their_lora_fa
from peft.optimizers import create_loraplus_optimizer as their_lora_plus
from peft.optimizers import lorafa
from safetensors import safe_open
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import ince
from ince.lora import PeftModel, get_peft_model
from ince.lora.layers.projections import Projections
from ince.optim import create_lorafa_optimizer, create_loraplus_optimizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    # Of PEFT, about files without projections.
    pytest.mark.filterwarnings("ignore:Specified to not (save|load) vera_A:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
    # Of PEFT, about its own files of AdaLoRA.
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Adapter 'default'. [0-9]+ LoRA tensor"),
]

IDS = torch.tensor([[1, 5, 9, 2, 7, 40], [3, 3, 0, 11, 30, 2]])
SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ALL = "all-linear"
CONFIGS = {
    "vera": ("Vera", {"r": 6, "target_modules": ALL, "init_weights": False}),
    "vera wide": ("Vera", {"r": 50, "target_modules": ["q_proj", "down_proj"], "d_initial": 0.3}),
    "vera seed": (
        "Vera",
        {
            "r": 5,
            "target_modules": ALL,
            "save_projection": False,
            "projection_prng_key": 17,
            "init_weights": False,
        },
    ),
    "vera bias": (
        "Vera",
        {"r": 5, "target_modules": ["q_proj"], "init_weights": False, "bias": "vera_only"},
    ),
    "adalora": (
        "AdaLora",
        {
            "init_r": 6,
            "target_r": 3,
            "total_step": 9,
            "target_modules": ALL,
            "init_lora_weights": False,
        },
    ),
    "adalora alpha": (
        "AdaLora",
        {
            "init_r": 4,
            "target_r": 2,
            "total_step": 9,
            "lora_alpha": 32,
            "target_modules": ["k_proj", "up_proj"],
            "init_lora_weights": False,
        },
    ),
    "adalora no alpha": (
        "AdaLora",
        {"init_r": 9, "total_step": 9, "lora_alpha": -1, "init_lora_weights": False},
    ),
}


def base(kind="llama", **values):
    torch.manual_seed(0)
    if kind == "gpt2":
        sizes = {"vocab_size": 48, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
        return GPT2LMHeadModel(GPT2Config(**sizes, **values)).eval()
    return LlamaForCausalLM(LlamaConfig(**(SIZES | values))).eval()


def ours(model, method, values, seed=1):
    torch.manual_seed(seed)
    config = getattr(ince, f"{method}Config")(task_type="CAUSAL_LM", **values)
    return get_peft_model(model, config).eval()


def theirs(model, method, values, seed=1):
    torch.manual_seed(seed)
    values = json.loads(json.dumps(values))
    config = getattr(peft, f"{method}Config")(task_type="CAUSAL_LM", **values)
    return peft.get_peft_model(model, config).eval()


def bases(values):
    return {"attention_bias": True} if "bias" in values else {}


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def different(a, b):
    assert (a - b).abs().max() > 1e-3


@pytest.fixture(params=CONFIGS)
def case(request):
    return CONFIGS[request.param]


def shaken(model):
    """Every trained tensor moved, as by training: fresh ones are the identity."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


# ------------------------------------------------------------------------------------- adapters


def test_a_seed_makes_the_same_adapter(case):
    method, values = case
    one, other = (make(base(**bases(values)), method, values) for make in (ours, theirs))
    mine = {name: p for name, p in one.named_parameters() if p.requires_grad}
    peer = {name: p for name, p in other.named_parameters() if p.requires_grad}
    if "bias" not in values:  # which PEFT trains in the base itself
        assert mine.keys() == peer.keys()
    for name in mine.keys() & peer.keys():
        assert torch.equal(mine[name], peer[name]), name
    assert one.get_nb_trainable_parameters()[0] == other.get_nb_trainable_parameters()[0]
    close(logits(one), logits(other))


def test_our_adapter_loads_in_peft(tmp_path, case):
    method, values = case
    model = shaken(ours(base(**bases(values)), method, values))
    different(logits(model), logits(base(**bases(values))))
    model.save_pretrained(tmp_path)
    close(logits(peft.PeftModel.from_pretrained(base(**bases(values)), tmp_path)), logits(model))


def test_their_adapter_loads_here(tmp_path, case):
    method, values = case
    model = shaken(theirs(base(**bases(values)), method, values))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(**bases(values)), tmp_path)
    different(logits(loaded), logits(base(**bases(values))))
    close(logits(loaded), logits(model))


def test_the_files_have_the_same_keys_and_values(tmp_path, case):
    method, values = case
    for make, folder in ((ours, "ours"), (theirs, "theirs")):
        make(base(**bases(values)), method, values).save_pretrained(tmp_path / folder)
    read = {}
    for folder in ("ours", "theirs"):
        config = json.loads((tmp_path / folder / "adapter_config.json").read_text())
        # Names may be listed in full or short; what they mean shows in the tensors.
        names = config.pop("target_modules")
        config["target_modules"] = sorted({name.rpartition(".")[2] for name in names})
        with safe_open(tmp_path / folder / "adapter_model.safetensors", "pt") as file:
            tensors = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        read[folder] = config, tensors
    assert read["ours"] == read["theirs"]


@pytest.mark.parametrize("name", ["vera", "adalora"])
def test_transposed_layers_are_theirs(tmp_path, name):
    method, values = CONFIGS[name]
    values = values | {"target_modules": ["c_attn", "c_fc"]}
    model = shaken(ours(base("gpt2"), method, values))
    model.save_pretrained(tmp_path)
    other = peft.PeftModel.from_pretrained(base("gpt2"), tmp_path)
    close(logits(other), logits(model))
    close(logits(model.merge_and_unload()), logits(model))


def test_merged_is_theirs_and_the_adapters(tmp_path, case):
    method, values = case
    model = shaken(ours(base(**bases(values)), method, values))
    model.save_pretrained(tmp_path)
    merged = model.merge_and_unload()
    close(logits(merged), logits(model))
    other = peft.PeftModel.from_pretrained(base(**bases(values)), tmp_path)
    close(logits(merged), logits(other.merge_and_unload()))


def test_gradients_and_loss_are_theirs(tmp_path, case):
    method, values = case
    values = {key: value for key, value in values.items() if key != "bias"}
    model = shaken(ours(base(), method, values))
    model.save_pretrained(tmp_path)
    other = peft.PeftModel.from_pretrained(base(), tmp_path, is_trainable=True)
    losses = []
    # In double precision: through attention that is nearly sure of itself little gets back.
    for each in (model.double().train(), other.double().train()):
        loss = each(input_ids=IDS, labels=IDS).loss
        loss.backward()
        losses.append(loss.item())
    assert math.isclose(*losses, rel_tol=1e-6)
    wanted = {name: p.grad for name, p in other.named_parameters() if p.requires_grad}
    got = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert got.keys() == wanted.keys()
    for name, grad in got.items():
        torch.testing.assert_close(grad, wanted[name], rtol=1e-4, atol=1e-9, msg=name)


@pytest.mark.parametrize("key", [0, 1, 123456789])
def test_projections_are_theirs_to_the_bit(key):
    mine = Projections(7, 40, 64, seed=key, is_saved=True).own()
    values = {"r": 7, "target_modules": ALL, "projection_prng_key": key}
    other = theirs(base(intermediate_size=40, hidden_size=64), "Vera", values).base_model
    wide = max(other.vera_A["default"].shape[1], 64)
    again = Projections(7, wide, other.vera_B["default"].shape[0], seed=key, is_saved=True).own()
    assert torch.equal(other.vera_A["default"], again[0])
    assert torch.equal(other.vera_B["default"], again[1])
    assert [tuple(t.shape) for t in mine] == [(7, 40), (64, 7)]


class Pixels(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 6, (2, 3), stride=2, padding=1)
        self.head = torch.nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.conv(x).mean((-1, -2)))


def test_convolutions_of_adalora_are_theirs(tmp_path):
    values = {
        "init_r": 4,
        "target_r": 2,
        "total_step": 9,
        "target_modules": ["conv", "head"],
        "init_lora_weights": False,
    }
    torch.manual_seed(1)
    x = 0.1 * torch.randn(2, 3, 8, 9)
    model = get_peft_model(Pixels(), ince.AdaLoraConfig(**values)).eval()
    model.save_pretrained(tmp_path)
    other = peft.PeftModel.from_pretrained(Pixels(), tmp_path)
    close(other(x), model(x))
    different(model(x), Pixels()(x))
    close(model.merge_and_unload()(x), model(x))


# ------------------------------------------------------------------------------------ allocation

BUDGET = {
    "init_r": 6,
    "target_r": 2,
    "total_step": 10,
    "tinit": 2,
    "tfinal": 3,
    "deltaT": 2,
    "target_modules": ["q_proj", "v_proj", "down_proj"],
    "orth_reg_weight": 0.1,
    "init_lora_weights": False,
}


def trained(model, num_steps, lr=0.02):
    """Train by plain descent, and what the ranks were after each step."""
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=lr)
    patterns = []
    for step in range(num_steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        pattern = model.peft_config["default"].rank_pattern
        patterns.append(
            {
                key.removesuffix(".default"): list(mask)
                for key, mask in sorted((pattern or {}).items())
            }
        )
    return patterns


@pytest.mark.parametrize("changes", [{}, {"deltaT": 1, "tinit": 0}, {"tfinal": 0, "target_r": 1}])
def test_the_same_ranks_are_given_up_at_the_same_steps(tmp_path, changes):
    values = BUDGET | changes
    model, other = (make(base(), "AdaLora", values) for make in (ours, theirs))
    mine, peer = trained(model, 11), trained(other, 11)
    assert mine == peer
    if "tfinal" not in changes:
        assert sum(sum(mask) for mask in mine[-1].values()) == 2 * 6 < len(mine[-1]) * 6
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter, other.get_parameter(name), rtol=1e-3, atol=1e-5, msg=name
        )
    model.save_pretrained(tmp_path / "ours")
    other.save_pretrained(tmp_path / "theirs")
    one, two = (
        json.loads((tmp_path / name / "adapter_config.json").read_text())["rank_pattern"]
        for name in ("ours", "theirs")
    )
    assert one == two


@pytest.mark.parametrize("num_steps", [5, 8, 10])
@pytest.mark.parametrize("maker", [ours, theirs])
def test_an_allocated_adapter_crosses_over(tmp_path, maker, num_steps):
    model = maker(base(), "AdaLora", BUDGET | {"deltaT": 1})
    trained(model, num_steps)
    model.eval()
    model.save_pretrained(tmp_path)
    pruned = any(
        parameter.shape[0] < BUDGET["init_r"]
        for name, parameter in PeftModel.from_pretrained(base(), tmp_path).named_parameters()
        if "lora_E" in name
    )
    assert pruned
    for side in (PeftModel, peft.PeftModel):
        loaded = side.from_pretrained(base(), tmp_path)
        close(logits(loaded), logits(model))
        different(logits(loaded), logits(base()))


# ------------------------------------------------------------------------------------ optimizers


def lora(**values):
    values = {"r": 4, "lora_alpha": 16, "target_modules": ALL, "init_lora_weights": False} | values
    one, other = (make(base(), "Lora", values) for make in (ours, theirs))
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            other.get_parameter(name).copy_(parameter)
    return one.train(), other.train()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"use_dora": True},
        {"modules_to_save": ["lm_head", "norm"]},
    ],
)
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning")
def test_lora_plus_has_their_groups(values):
    options = {"lr": 1e-3, "loraplus_lr_ratio": 16.0, "loraplus_weight_decay": 0.1, "eps": 1e-7}
    groups = []
    for model, make in zip(
        lora(**values), (create_loraplus_optimizer, their_lora_plus), strict=True
    ):
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        optimizer = make(model, torch.optim.AdamW, **options)
        groups.append(
            [
                {key: value for key, value in group.items() if key != "params"}
                | {"names": [names[id(parameter)] for parameter in group["params"]]}
                for group in optimizer.param_groups
            ]
        )
    assert groups[0] == groups[1]
    assert any(group["names"] for group in groups[0])


def test_lora_plus_over_layer_norms_and_biases_has_their_groups():
    values = {"r": 2, "target_modules": ["c_attn"], "modules_to_save": ["ln_f"]}
    groups = []
    for make, optimizer_of in (
        (ours, create_loraplus_optimizer),
        (theirs, their_lora_plus),
    ):
        model = make(base("gpt2"), "Lora", values)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        optimizer = optimizer_of(model, torch.optim.SGD, lr=0.1, loraplus_lr_ratio=4)
        groups.append([{names[id(p)] for p in group["params"]} for group in optimizer.param_groups])
    assert groups[0] == groups[1]
    assert len(groups[0][3]) == 2


def steps(model, optimizer, num_steps=5):
    for _ in range(num_steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {"modules_to_save": ["lm_head"]},
    ],
)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lora_fa_takes_their_steps(monkeypatch, values, weight_decay):
    # In bfloat16, PEFT's default, its steps are only near to what they are meant to be.
    monkeypatch.setattr(lorafa, "is_bf16_available", lambda: False)
    one, other = lora(**values)
    before = {name: parameter.detach().clone() for name, parameter in one.named_parameters()}
    options = {"r": 4, "lora_alpha": 16, "lr": 1e-3, "weight_decay": weight_decay}
    steps(one, create_lorafa_optimizer(one, **options))
    steps(other, their_lora_fa(other, **options))
    moved = set()
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(
            parameter, other.get_parameter(name), rtol=0, atol=1e-6, msg=name
        )
        assert parameter.requires_grad == other.get_parameter(name).requires_grad
        if not torch.equal(parameter, before[name]):
            moved.add(name.split(".default")[0].rpartition(".")[2])
    assert moved == {"lora_B"} | ({"modules_to_save"} if "modules_to_save" in values else set())
