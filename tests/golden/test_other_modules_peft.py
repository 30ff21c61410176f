"""PEFT as the oracle for all that is adapted and is no layer with factors.

Whole modules, rows of tokens, parameters of experts, biases, tied embeddings: files cross over
in both directions, to the logits. Every model here has random weights.
"""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
from safetensors import safe_open
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import ince.lora
from ince.errors import AdapterError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    # PEFT says so of every tied model that it leaves untied.
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer:UserWarning"),
    # It does not look for patterns among parameters, and uses them all the same.
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"),
]

shared = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("moe_models.py"))))
IDS, SIZES = shared.IDS, shared.SIZES
base, close = shared.base, shared.close
mixtral, qwen3, gpt_oss = shared.mixtral, shared.qwen3, shared.gpt_oss
BERT = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
T5 = {"vocab_size": 48, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}


def llama():
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False))


def tied():
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))


def bert():
    return BertForSequenceClassification(BertConfig(**BERT, num_labels=3))


def bert_tokens():
    return BertForTokenClassification(BertConfig(**BERT, num_labels=3))


def bert_answers():
    return BertForQuestionAnswering(BertConfig(**BERT))


def t5():
    return T5ForConditionalGeneration(T5Config(**T5))


EXPERT_NAMES = ["experts.gate_up_proj", "experts.down_proj"]
# Options that mean the same on both sides.
CASES = {
    "head": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "embedding": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "norms": (llama, {"target_modules": "all-linear", "modules_to_save": ["norm", "lm_head"]}),
    "tied": (
        tied,
        {
            "target_modules": ["q_proj"],
            "modules_to_save": ["embed_tokens", "lm_head"],
            "ensure_weight_tying": True,
        },
    ),
    "tied head": (
        tied,
        {
            "target_modules": ["q_proj"],
            "modules_to_save": ["lm_head"],
            "ensure_weight_tying": True,
        },
    ),
    "untied": (
        tied,
        {
            "target_modules": ["q_proj"],
            "modules_to_save": ["embed_tokens", "lm_head"],
            "ensure_weight_tying": False,
        },
    ),
    "untied head": (
        tied,
        {
            "target_modules": ["q_proj"],
            "modules_to_save": ["lm_head"],
            "ensure_weight_tying": False,
        },
    ),
    "tied factors": (
        tied,
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    ),
    "tied factors of a head": (
        tied,
        {"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True},
    ),
    "tied factors by an expression": (
        tied,
        {"target_modules": r".*(q_proj|embed_tokens)", "ensure_weight_tying": True},
    ),
    "factors apart": (
        tied,
        {"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": False},
    ),
    "tokens": (llama, {"target_modules": ["q_proj"], "trainable_token_indices": [40, 2, 7]}),
    "tied tokens": (tied, {"target_modules": ["q_proj"], "trainable_token_indices": [40, 2, 7]}),
    "tokens by name": (
        llama,
        {
            "target_modules": ["q_proj"],
            "trainable_token_indices": {"embed_tokens": [3], "lm_head": [4, 5]},
        },
    ),
    "tokens apart": (
        tied,
        {
            "target_modules": ["q_proj"],
            "trainable_token_indices": {"embed_tokens": [3], "lm_head": [4, 5]},
            "ensure_weight_tying": False,
        },
    ),
    "tokens of a T5": (t5, {"target_modules": ["q"], "trainable_token_indices": [40, 2, 7]}),
    "T5": (
        t5,
        {"target_modules": ["q"], "modules_to_save": ["lm_head"], "ensure_weight_tying": True},
    ),
    "T5 apart": (
        t5,
        {
            "target_modules": ["q"],
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": False,
        },
    ),
    "classes": (bert, {"target_modules": ["query"], "task_type": "SEQ_CLS"}),
    "classes, all": (bert, {"target_modules": "all-linear", "task_type": "SEQ_CLS"}),
    "tokens' classes": (bert_tokens, {"target_modules": ["query"], "task_type": "TOKEN_CLS"}),
    "answers": (bert_answers, {"target_modules": ["query"], "task_type": "QUESTION_ANS"}),
    "experts": (
        mixtral,
        {
            "target_modules": ["q_proj"],
            "target_parameters": EXPERT_NAMES,
            "rank_pattern": {"experts.down_proj": 3, "q_proj": 2},
            "alpha_pattern": {".*gate_up_proj": 5},
        },
    ),
    "one of the experts": (qwen3, {"target_modules": [], "target_parameters": ["down_proj"]}),
    "experts, rslora": (
        qwen3,
        {"target_modules": ["v_proj"], "target_parameters": EXPERT_NAMES, "use_rslora": True},
    ),
    "router": (
        qwen3,
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.gate.weight", "gate_up_proj"]},
    ),
    "router by name": (mixtral, {"target_modules": ["q_proj", "gate"]}),
    "transposed experts": (gpt_oss, {"target_modules": [], "target_parameters": EXPERT_NAMES}),
    "deeper": (
        llama,
        {"target_modules": ["q_proj", "up_proj"], "layer_replication": [[0, 2], [0, 1], [1, 2]]},
    ),
    "deeper BERT": (
        bert,
        {"target_modules": ["query"], "layer_replication": [[0, 1], [0, 2]]},
    ),
    "linear weight": (llama, {"target_modules": [], "target_parameters": ["q_proj.weight"]}),
    "biases": (bert, {"target_modules": ["query"], "bias": "all"}),
    "biases and a head": (
        bert,
        {"target_modules": ["query"], "bias": "all", "task_type": "SEQ_CLS"},
    ),
    "biases of layers": (bert, {"target_modules": ["query", "dense"], "bias": "lora_only"}),
}
# PEFT ties the embeddings of a T5 to a linear layer, which fails at the first token.
FAILS_IN_PEFT = {"T5"}
# PEFT merges into the one weight that two modules share, for both.
MERGES_WRONGLY = {
    "deeper",
    "deeper BERT",
    "tokens apart",
    "factors apart",
    "tied factors",
    "tied factors of a head",
    "tied factors by an expression",
}
# PEFT has tied factors twice over one memory, counts them twice and steps twice.
TWICE_IN_PEFT = {"tied factors", "tied factors of a head", "tied factors by an expression"}
# PEFT's `bias` trains the base's own, and counts and names them so.
LIVE_DIFFERS = {"biases", "biases and a head", "biases of layers"}


def theirs(make, values):
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, init_lora_weights=False, **json.loads(json.dumps(values)))
    return changed(peft.get_peft_model(base(make), config).eval())


def ours(make, values):
    torch.manual_seed(1)
    config = ince.lora.LoraConfig(r=2, init_lora_weights=False, **values)
    return changed(ince.lora.get_peft_model(base(make), config).eval())


def changed(model):
    """As if it had been trained: nothing is as it started."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.1
    return model


def logits(model):
    inputs = {"input_ids": IDS}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = IDS
    with torch.no_grad():
        found = model(**inputs)
    return found.start_logits if "start_logits" in found else found.logits


def different(a, b):
    assert (a - b).abs().max() > 1e-3


def safe(folder):
    return safe_open(folder / "adapter_model.safetensors", "pt")


@pytest.fixture(params=CASES)
def case(request):
    return request.param


@pytest.fixture(params=[case for case in CASES if case not in FAILS_IN_PEFT])
def case_of_both(request):
    return request.param


def test_the_same_is_trained(case):
    make, values = CASES[case]
    one, other = ours(make, values), theirs(make, values)
    if case in TWICE_IN_PEFT:
        assert one.get_nb_trainable_parameters() < other.get_nb_trainable_parameters()
        return
    assert one.get_nb_trainable_parameters()[0] == other.get_nb_trainable_parameters()[0]
    if case not in LIVE_DIFFERS:
        assert one.get_nb_trainable_parameters() == other.get_nb_trainable_parameters()
        names = {name for name, p in one.named_parameters() if p.requires_grad}
        assert names == {name for name, p in other.named_parameters() if p.requires_grad}


def test_our_adapter_loads_in_peft(tmp_path, case):
    make, values = CASES[case]
    model = ours(make, values)
    different(logits(model), logits(base(make)))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    close(logits(peft.PeftModel.from_pretrained(base(make), tmp_path)), logits(model))


def test_their_adapter_loads_here(tmp_path, case_of_both):
    make, values = CASES[case_of_both]
    model = theirs(make, values)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    unchanged = base(make)
    loaded = ince.lora.PeftModel.from_pretrained(unchanged, tmp_path)
    different(logits(loaded), logits(base(make)))
    close(logits(loaded), logits(model))
    if "layer_replication" not in values:
        with loaded.disable_adapter():
            assert torch.equal(logits(loaded), logits(base(make)))
    assert torch.equal(logits(loaded.unload()), logits(base(make)))


def test_the_files_have_the_same_keys(tmp_path, case_of_both):
    make, values = CASES[case_of_both]
    ours(make, values).save_pretrained(tmp_path / "ours")
    theirs(make, values).save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    with safe(tmp_path / "ours") as a, safe(tmp_path / "theirs") as b:
        assert {name: a.get_slice(name).get_shape() for name in a.keys()} == {  # noqa: SIM118
            name: b.get_slice(name).get_shape()
            for name in b.keys()  # noqa: SIM118
            # What PEFT writes of the base, and of a bias twice.
            if ".original_module." not in name and ".modules_to_save." not in name
        }
    one, other = (
        json.loads((tmp_path / name / "adapter_config.json").read_text())
        for name in ("ours", "theirs")
    )
    for key in ("target_modules", "target_parameters"):
        mine, their = one.pop(key), other.pop(key)
        if isinstance(mine, str):
            assert mine == their
        elif values.get("target_modules") != "all-linear":
            assert set(mine or ()) == set(their or ())
    assert one == other


def test_merged_is_the_adapter_and_theirs(tmp_path, case):
    make, values = CASES[case]
    model = ours(make, values)
    model.save_pretrained(tmp_path)
    merged = model.merge_and_unload()
    close(logits(merged), logits(model))
    if case not in MERGES_WRONGLY:
        other = peft.PeftModel.from_pretrained(base(make), tmp_path).merge_and_unload()
        close(logits(merged), logits(other))


def test_gradients_are_theirs(tmp_path, case_of_both):
    make, values = CASES[case_of_both]
    if case_of_both in LIVE_DIFFERS:
        values = {**values, "bias": "none"}
    model = ours(make, values)
    model.save_pretrained(tmp_path)
    other = peft.PeftModel.from_pretrained(base(make), tmp_path, is_trainable=True)
    got, wanted = (gradients(each) for each in (model, other))
    if case_of_both in TWICE_IN_PEFT:
        for name in ("A", "B"):
            embedding, head = (
                f"base_model.model.model.embed_tokens.lora_embedding_{name}.default",
                f"base_model.model.lm_head.lora_{'BA'['AB'.index(name)]}.default.weight",
            )
            wanted[embedding] += wanted.pop(head).t()
    assert got.keys() == wanted.keys()
    for name, grad in got.items():
        torch.testing.assert_close(grad, wanted[name], rtol=1e-3, atol=1e-4)


def gradients(model):
    inputs = {"input_ids": IDS}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = IDS
    found = model.eval()(**inputs)
    found = found.start_logits if "start_logits" in found else found.logits
    found.square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


TOKENS = {"target_modules": ["q_proj"], "trainable_token_indices": [49, 3]}


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (tied, {"target_modules": ["q_proj", "embed_tokens"]}),
        (tied, TOKENS),
        (llama, TOKENS),
        (tied, {"target_modules": ["q_proj"]}),
        (llama, {"target_modules": ["q_proj"]}),
    ],
)
def test_their_file_of_a_resized_vocabulary(tmp_path, make, values):
    def resized(seed):
        model = base(make)
        torch.manual_seed(seed)
        model.resize_token_embeddings(50, mean_resizing=False)
        return model

    config = peft.LoraConfig(r=2, init_lora_weights=False, **values)
    model = changed(peft.get_peft_model(resized(1), config).eval())
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    unchanged = resized(2)
    plain = logits(unchanged)
    loaded = ince.lora.PeftModel.from_pretrained(unchanged, tmp_path)
    close(logits(loaded), logits(model))
    assert logits(loaded.unload()).equal(plain)
    with pytest.raises(AdapterError, match="resize_token_embeddings"):
        ince.lora.PeftModel.from_pretrained(base(make), tmp_path)
