"""A model, an adapter and data on disk, small enough to run whole commands on."""

import json

import pytest
import torch

from ince.cli import main


@pytest.fixture
def command(capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    turns = [
        [
            {"role": "user", "content": f"What is {number} and one?"},
            {"role": "assistant", "content": f"It is {number + 1}."},
        ]
        for number in range(6)
    ]
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    return path


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, small_tokenizer):
    """A Llama of two small layers; its head is its own, so that it does not parrot."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(small_tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    small_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory, model_folder):
    """An adapter on it that changes what it says."""
    from ince.lora import LoraConfig, get_peft_model
    from ince.models import load_model

    base, _ = load_model(model_folder)
    model = get_peft_model(
        base,
        LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules="all-linear",
            base_model_name_or_path=str(model_folder),
        ),
    )
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    folder = tmp_path_factory.mktemp("adapters") / "tiny"
    model.save_pretrained(folder)
    return folder
