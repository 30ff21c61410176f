"""PEFT as the oracle of every combination: the same adapters give the same updates.

What is compared is ``B A`` of each layer, as the tensors lie in the new adapter. Its scale is
left out: PEFT hands the first adapter's rsLoRA on, and multiplies by √r what is complete.
"""

import math

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from ince.lora.combine import KINDS, Part, check_combination, combine_layer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing:FutureWarning",
    "ignore:Adapter .* was active:UserWarning",
    "ignore:fan_in_fan_out is set to True:UserWarning",
    "ignore:The density 1.0 is greater:UserWarning",
)

SEED = 11
ON_FACTORS = [name for name, kind in KINDS.items() if kind.on == "factors"]
DENSE = [name for name, kind in KINDS.items() if kind.on == "delta"]


def llama():
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return LlamaForCausalLM(LlamaConfig(**sizes)).requires_grad_(False)


class Zoo(nn.Module):
    """One layer of each geometry; nothing is run."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(23, 12)
        self.transposed = Conv1D(14, 12)
        self.conv = nn.Conv2d(4, 10, 3)
        self.pointwise = nn.Conv2d(4, 10, 1)
        self.line = nn.Conv1d(4, 10, 3)
        self.linear = nn.Linear(12, 9)


def zoo():
    torch.manual_seed(0)
    return Zoo().requires_grad_(False)


def adapted(base, configs):
    torch.manual_seed(1)
    first, *others = [peft.LoraConfig(init_lora_weights=False, **values) for values in configs]
    model = peft.get_peft_model(base, first, adapter_name="one")
    for name, config in zip(("two", "three"), others, strict=False):
        model.add_adapter(name, config)
    for _, layer in layers(model):
        for name in adapters_of(layer):
            for factor in raw_factors(layer, name):
                # B of an embedding is drawn at 1: all are brought to the size of trained ones.
                factor.data = torch.randn(factor.shape) * 0.3
    return model


def layers(model):
    return [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer)]


def adapters_of(layer):
    return [*layer.lora_A, *layer.lora_embedding_A]


def raw_factors(layer, name):
    if name in layer.lora_A:
        return layer.lora_A[name].weight, layer.lora_B[name].weight
    return layer.lora_embedding_A[name], layer.lora_embedding_B[name]


def factors(layer, name):
    a, b = raw_factors(layer, name)
    return a.detach().flatten(1).clone(), b.detach().flatten(1).clone()


def rank_of(config):
    return max(config.r, *config.rank_pattern.values(), 0)


def agree(model, names, weights, kind, **options):
    """Combine on both sides; returns PEFT's factors and ours by layer, after comparing."""
    full_matrices = options.pop("full_matrices", True)
    ranks = {name: rank_of(config) for name, config in model.peft_config.items()}
    combination = check_combination(kind, names, weights, ranks, **options)
    of = {}
    generator = torch.Generator().manual_seed(SEED)
    for where, layer in layers(model):
        present = [(n, w) for n, w in zip(names, weights, strict=True) if n in adapters_of(layer)]
        parts = [Part(*factors(layer, n), layer.scaling[n], w, n) for n, w in present]
        if parts:
            of[where] = combine_layer(
                combination,
                parts,
                transposed=isinstance(layer.get_base_layer(), nn.Embedding | Conv1D),
                generator=generator,
            )

    inject = model.base_model.inject_adapter

    def inject_then_seed(*args, **kwargs):
        inject(*args, **kwargs)  # draws a start for the new adapter
        torch.manual_seed(SEED)

    model.base_model.inject_adapter = inject_then_seed
    model.add_weighted_adapter(
        names, weights, "new", kind, svd_full_matrices=full_matrices, **options
    )
    assert model.peft_config["new"].r == combination.rank
    theirs = {n: factors(layer, "new") for n, layer in layers(model) if "new" in adapters_of(layer)}
    assert theirs.keys() == of.keys()
    for where, (a, b) in of.items():
        assert a.dtype == b.dtype == torch.float32
        assert a.shape[0] == b.shape[1] == combination.rank
        their_a, their_b = theirs[where]
        assert (b @ a - their_b @ their_a).abs().max() <= 1e-5, where
    assert max((b @ a).abs().max() for a, b in of.values()) > 0.05
    return theirs, of


LINEAR = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
EQUAL = [
    {"r": 4, "lora_alpha": 8, **LINEAR},
    {"r": 4, "lora_alpha": 2, "use_rslora": True, **LINEAR},
    {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "k_proj"]},
]
UNEQUAL = [
    {"r": 2, "lora_alpha": 5, **LINEAR},
    {"r": 5, "lora_alpha": 3, "use_rslora": True, "target_modules": ["q_proj", "up_proj"]},
    {"r": 7, "lora_alpha": 7, "rank_pattern": {"v_proj": 3}, **LINEAR},
]


@pytest.mark.parametrize("weights", [[0.7, 0.4, 1.3], [1.0, -0.6, 0.5], [-1, 2, -1]])
@pytest.mark.parametrize("kind", KINDS)
def test_three_adapters_of_one_rank(kind, weights):
    agree(adapted(llama(), EQUAL), ["one", "two", "three"], weights, kind, density=0.6)


@pytest.mark.parametrize("kind", ["cat", *DENSE])
def test_adapters_of_different_ranks(kind):
    agree(adapted(llama(), UNEQUAL), ["three", "one", "two"], [0.8, -1.1, 0.5], kind, density=0.45)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.vote])
@pytest.mark.parametrize("method", ["total", "frequency"])
def test_both_elections(kind, method):
    model = adapted(llama(), EQUAL)
    agree(model, ["one", "two"], [0.9, -0.8], kind, density=0.7, majority_sign_method=method)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.pruning])
def test_nothing_pruned(kind):
    agree(adapted(llama(), EQUAL), ["one", "two"], [0.9, 0.3], kind, density=1.0)


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("svd_rank", [1, 3, 6, 14])
def test_a_rank_of_its_own(kind, svd_rank):
    model = adapted(llama(), UNEQUAL)
    agree(model, ["one", "two", "three"], [0.8, 0.7, 0.5], kind, density=0.5, svd_rank=svd_rank)


@pytest.mark.parametrize("full_matrices", [True, False])
@pytest.mark.parametrize("kind", DENSE)
def test_clamped(kind, full_matrices):
    agree(
        adapted(llama(), EQUAL),
        ["one", "two"],
        [0.8, 0.7],
        kind,
        density=0.9,
        svd_clamp=0.9,
        svd_rank=3,
        full_matrices=full_matrices,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_one_adapter_is_linear(kind):
    theirs, ours = agree(adapted(llama(), EQUAL), ["two"], [-0.5], kind)
    for where, pair in ours.items():
        for mine, other in zip(pair, theirs[where], strict=True):
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("kind", ["cat", *ON_FACTORS])
def test_the_factors_are_theirs_where_no_svd_is_free_to_turn_them(kind):
    theirs, ours = agree(adapted(llama(), EQUAL), ["one", "two"], [0.8, -0.7], kind, density=0.5)
    for where, pair in ours.items():
        for mine, other in zip(pair, theirs[where], strict=True):
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("kind", DENSE)
def test_the_split_is_theirs_up_to_signs(kind):
    theirs, ours = agree(
        adapted(llama(), EQUAL), ["one", "two"], [0.8, -0.7], kind, density=0.8, svd_rank=3
    )
    for where, pair in ours.items():
        for mine, other in zip(pair, theirs[where], strict=True):
            torch.testing.assert_close(mine.abs(), other.abs(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_geometry_as_matrices(kind):
    names = ["embed", "transposed", "conv", "pointwise", "line", "linear"]
    if KINDS[kind].on == "delta":
        names.remove("line")  # PEFT's decomposition knows no Conv1d
    configs = [
        {"r": 4, "lora_alpha": alpha, "target_modules": names, "fan_in_fan_out": True}
        for alpha in (4, 7)
    ]
    agree(adapted(zoo(), configs), ["one", "two"], [0.8, -0.7], kind, density=0.6)


def test_the_scale_that_they_forget():
    """√r too much: the reason why ince's combined adapters carry no rsLoRA."""
    configs = [EQUAL[1], EQUAL[0]]
    model = adapted(llama(), configs)
    wanted = {}
    for where, layer in layers(model):
        wanted[where] = sum(layer.get_delta_weight(name) for name in ("one", "two"))
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "new", "cat")
    for where, layer in layers(model):
        got = layer.get_delta_weight("new")
        torch.testing.assert_close(got, wanted[where] * math.sqrt(8))
