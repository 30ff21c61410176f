"""A mask of ours reaches every kind of layer."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    modeling_utils,
)
from transformers.integrations import flex_attention as flex

from ince.errors import ModelReferenceError
from ince.models import attention_inputs

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SMALL, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
        )
    ),
}


def of_documents(query, key, value, scaling, window, lengths):
    """What FlashAttention computes of documents laid end to end, by torch."""
    outs = []
    for start, stop in pairwise(lengths.tolist()):
        q, k, v = (t[:, :, start:stop] for t in (query, key, value))
        places = torch.arange(stop - start)
        far = places[:, None] - places[None, :]
        seen = (far >= 0) & (far < (window or len(places)))
        outs.append(F.scaled_dot_product_attention(q, k, v, seen, scale=scaling, enable_gqa=True))
    return torch.cat(outs, dim=2)


def fake_flash_attention(module, query, key, value, attention_mask, scaling=None, **options):
    assert attention_mask is None
    rows, _, length, _ = query.shape
    ends = options["cu_seq_lens_q"]
    assert options["max_length_q"] == ends.diff().max()
    flat = [t.transpose(0, 1).flatten(1, 2)[None] for t in (query, key, value)]
    out = of_documents(*flat, scaling, options.get("sliding_window"), ends)
    return out[0].view(-1, rows, length, out.shape[-1]).permute(1, 2, 0, 3), None


@pytest.fixture
def implementations(monkeypatch):
    """Flex attention without minutes of compiling, and a FlashAttention that runs anywhere."""
    functions = modeling_utils.ALL_ATTENTION_FUNCTIONS
    monkeypatch.setitem(functions._global_mapping, "flash_attention_2", fake_flash_attention)

    def uncompiled(*args, training, **options):
        return flex_attention(*args, **options)

    monkeypatch.setattr(flex, "compile_friendly_flex_attention", uncompiled)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention", "flash_attention_2"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("implementations")
def test_two_documents_in_a_row_are_as_two_rows(name: str, attention: str) -> None:
    torch.manual_seed(1)
    model = MODELS[name]().eval()
    first, second = torch.randint(1, 64, (2, 9)), torch.randint(1, 64, (2, 7))
    segments = torch.tensor([[1] * 9 + [2] * 7] * 2)
    allowed = (segments[:, :, None] == segments[:, None, :]) & torch.ones(16, 16).tril().bool()
    positions = torch.cat([torch.arange(9), torch.arange(7)])[None].expand(2, -1)
    with torch.no_grad():
        alone = torch.cat([model(input_ids=first).logits, model(input_ids=second).logits], dim=1)
        model.config._attn_implementation_internal = attention
        packed = model(
            input_ids=torch.cat([first, second], dim=1),
            **attention_inputs(model, allowed[:, None], positions),
        ).logits
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


def test_flash_attention_refuses_a_shared_beginning() -> None:
    model = MODELS["llama"]()
    model.config._attn_implementation_internal = "flash_attention_2"
    # Two tokens that all share, then two examples that go on from there.
    positions = torch.tensor([[0, 1, 2, 3, 2, 3]])
    with pytest.raises(ModelReferenceError, match="share_beginnings"):
        attention_inputs(model, torch.ones(1, 1, 6, 6).bool(), positions)


def test_layers_that_no_mask_describes_are_refused() -> None:
    model = MODELS["llama"]()
    model.config.layer_types = ["chunked_attention", "full_attention"]
    with pytest.raises(ModelReferenceError, match="packing"):
        attention_inputs(model, torch.ones(1, 1, 4, 4).bool(), torch.arange(4)[None])
