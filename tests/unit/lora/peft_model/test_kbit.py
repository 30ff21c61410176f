"""A frozen base made ready for training: nothing is widened."""

import pytest
import torch
from torch import nn

from ince.errors import InputError
from ince.lora import cast_mixed_precision_params, get_peft_model, prepare_model_for_kbit_training
from ince.quant import NF4Config, quantize_model

IDS = torch.tensor([[1, 5, 9, 2, 7]])


@pytest.mark.parametrize("in_4bit", [False, True])
@pytest.mark.parametrize("settings", [None, {"use_reentrant": True}, {"use_reentrant": False}])
def test_gradients_reach_the_adapter_and_no_dtype_changes(llama, lora, in_4bit, settings):
    base = llama(hidden_size=64).to(torch.bfloat16)
    if in_4bit:
        quantize_model(base, NF4Config())
    before = {name: tensor.dtype for name, tensor in base.state_dict().items()}
    again = prepare_model_for_kbit_training(base, gradient_checkpointing_kwargs=settings)
    assert again is base
    assert {name: tensor.dtype for name, tensor in base.state_dict().items()} == before
    assert not any(parameter.requires_grad for parameter in base.parameters())
    assert base.is_activation_checkpointing
    model = get_peft_model(base, lora(target_modules="all-linear")).train()
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in trained)


def test_without_checkpointing(llama):
    base = prepare_model_for_kbit_training(llama(), use_gradient_checkpointing=False)
    assert not base.is_activation_checkpointing
    assert not any(parameter.requires_grad for parameter in base.parameters())
    plain = nn.Linear(2, 2)
    assert not prepare_model_for_kbit_training(plain, False).weight.requires_grad
    with pytest.raises(InputError, match="does not support gradient checkpointing"):
        prepare_model_for_kbit_training(plain)


def test_cast_for_mixed_precision(llama, lora):
    model = get_peft_model(llama(), lora())
    cast_mixed_precision_params(model, torch.bfloat16)
    for parameter in model.parameters():
        wanted = torch.float32 if parameter.requires_grad else torch.bfloat16
        assert parameter.dtype == wanted
    assert model(IDS).logits.dtype == torch.bfloat16
