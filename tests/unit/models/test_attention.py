"""A mask of ours reaches every kind of layer."""

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from ince.errors import ModelReferenceError
from ince.models import attention_argument

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


@pytest.mark.parametrize("name", MODELS)
def test_two_documents_in_a_row_are_as_two_rows(name: str) -> None:
    torch.manual_seed(1)
    model = MODELS[name]().eval()
    first, second = torch.randint(1, 64, (1, 9)), torch.randint(1, 64, (1, 7))
    segments = torch.tensor([[1] * 9 + [2] * 7])
    allowed = (segments[:, :, None] == segments[:, None, :]) & torch.ones(16, 16).tril().bool()
    positions = torch.cat([torch.arange(9), torch.arange(7)])[None]
    with torch.no_grad():
        packed = model(
            input_ids=torch.cat([first, second], dim=1),
            position_ids=positions,
            attention_mask=attention_argument(model, allowed[:, None], positions),
        ).logits
        alone = torch.cat([model(input_ids=first).logits, model(input_ids=second).logits], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


def test_layers_that_no_mask_describes_are_refused() -> None:
    model = MODELS["llama"]()
    model.config.layer_types = ["chunked_attention", "full_attention"]
    with pytest.raises(ModelReferenceError, match="packing"):
        attention_argument(model, torch.ones(1, 1, 4, 4).bool(), torch.arange(4)[None])
