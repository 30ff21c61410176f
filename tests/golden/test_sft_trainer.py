"""TRL's `SFTTrainer` trains an ince model: packed or not, over 16 bits and over 4."""

import peft
import pytest
import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import ince
from ince.errors import InputError

# PEFT asks transformers by a name that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


class SFTTrainer(ince.AdapterTrainerMixin, trl.SFTTrainer):
    pass


@pytest.fixture(scope="module")
def tokenizer():
    words = ["<pad>", "<s>", "</s>", "user", "assistant", "ev", "evde", "evden", "evler"]
    vocabulary = {word: i for i, word in enumerate([*words, *map(str, range(16))])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{% for m in messages %}<s> {{ m.role }} {{ m.content }} </s> {% endfor %}",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def load(folder, bits):
    kind = {} if bits == 16 else {"quantization_config": ince.NF4Config(blocksize=32)}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **kind)


def adapted(folder, bits):
    model = load(folder, bits)
    if bits == 4:
        model = ince.prepare_model_for_kbit_training(model)
    torch.manual_seed(1)
    return ince.get_peft_model(model, ince.LoraConfig(**LORA))


@pytest.fixture
def chats():
    answers = ["ev", "evde", "evden", "evler"]
    return Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": str(i)},
                    {"role": "assistant", "content": " ".join(answers[: 1 + i % 4])},
                ]
            }
            for i in range(16)
        ]
    )


def arguments(output, **changes):
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "max_length": 64,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "activation_checkpointing": False,
        "seed": 3,
    }
    return trl.SFTConfig(output_dir=str(output), **(settings | changes))


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("bits", [16, 4])
def test_it_trains_the_adapter_alone(folder, tmp_path, chats, tokenizer, bits, packing):
    trainer = SFTTrainer(
        model=adapted(folder, bits),
        args=arguments(
            tmp_path,
            packing=packing,
            activation_checkpointing=bits == 4,
            eval_strategy="steps",
            eval_steps=3,
            save_strategy="steps",
            save_steps=3,
        ),
        train_dataset=chats,
        eval_dataset=chats,
        processing_class=tokenizer,
    )
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in changed)
    assert losses(trainer)[-1] < 0.95 * losses(trainer)[0]
    assert trainer.model.is_activation_checkpointing is (bits == 4)
    checkpoint = tmp_path / "checkpoint-6"
    assert not (checkpoint / "model.safetensors").exists()
    loaded = ince.PeftModel.from_pretrained(load(folder, bits), checkpoint)
    ids = torch.tensor([[1, 5, 9, 2]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, trainer.model.eval()(ids).logits)


def test_the_course_is_that_of_peft(folder, tmp_path, chats, tokenizer):
    def fresh():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    torch.manual_seed(1)
    ours = ince.get_peft_model(fresh(), ince.LoraConfig(**LORA))
    theirs = peft.get_peft_model(fresh(), peft.LoraConfig(**LORA))
    theirs.load_state_dict(ours.state_dict())
    courses = []
    for kind, model in ((SFTTrainer, ours), (trl.SFTTrainer, theirs)):
        trainer = kind(
            model=model,
            args=arguments(tmp_path, packing=True, max_steps=4),
            train_dataset=chats,
            processing_class=tokenizer,
        )
        trainer.train()
        courses.append(losses(trainer))
    assert courses[0] == pytest.approx(courses[1], rel=1e-4)


def test_adapters_are_not_the_trainers_to_make(folder, tmp_path, chats, tokenizer):
    with pytest.raises(InputError, match="before it is given to a trainer"):
        SFTTrainer(
            model=load(folder, 16),
            args=arguments(tmp_path),
            train_dataset=chats,
            processing_class=tokenizer,
            peft_config=peft.LoraConfig(**LORA),
        )
