import pytest
import torch

from ince.errors import ProofError
from ince.quant import NF4Config, quantize_model
from ince.serve.engine.forward import PagedForward, layer_shapes
from ince.serve.engine.proof import prove


@pytest.fixture
def make_model():
    """A function that makes a float32 Llama of two layers, always the same."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def make():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        return LlamaForCausalLM(config).requires_grad_(False).eval()

    return make


def prove_apart(model, share):
    """Prove a model that says `share` more where tokens stand side by side, as alone."""
    handle = model.model.norm.register_forward_hook(
        lambda _, __, output: output * (1 + share * (output.shape[1] > 1))
    )
    prove(model, PagedForward(model, layer_shapes(model), 8), 8)
    handle.remove()


def test_a_model_that_says_something_else_in_the_engine_is_found(make_model):
    model = make_model()
    prove_apart(model, 0)
    with pytest.raises(ProofError, match="others in the engine"):
        prove_apart(model, 0.01)


def test_4_bit_layers_that_multiply_in_16_bits_round_as_such(make_model):
    model = make_model()
    quantize_model(model, NF4Config(compute_dtype="bfloat16"))
    assert model.get_input_embeddings().weight.dtype == torch.float32
    prove_apart(model, 0.01)
    with pytest.raises(ProofError, match="others in the engine"):
        prove_apart(model, 0.2)
