"""`ince.Trainer` beside transformers' own with PEFT: one course, and checkpoints of adapters."""

import json
import shutil

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

import ince

# PEFT asks transformers by a name that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

LORA = {
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "target_modules": "all-linear",
    "task_type": "CAUSAL_LM",
}
IDS = torch.tensor([[5, 9, 2, 7, 3, 11]])
# Trainer writes these, whatever the model.
OF_TRAINER = {"optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"}
OF_ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "training_args.json"}


def base():
    """Tied embeddings, whose whole model cannot be written as a trainer does it."""
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, tie_word_embeddings=True, **sizes
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    base().save_pretrained(path)
    return path


def in_4_bits(folder):
    config = ince.NF4Config(compute_dtype="float32", blocksize=32)
    return LlamaForCausalLM.from_pretrained(folder, quantization_config=config)


def adapted(model, seed=1, **changes):
    torch.manual_seed(seed)
    return ince.get_peft_model(model, ince.LoraConfig(**(LORA | changes)))


def rows(num_rows, seed):
    """Texts of several lengths, whose beginning carries no loss."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(num_rows):
        length = int(torch.randint(4, 12, (), generator=generator))
        ids = torch.randint(3, 60, (length,), generator=generator).tolist()
        found.append({"input_ids": ids, "labels": [-100, -100, *ids[2:]]})
    return found


def collate(batch):
    lengths = torch.tensor([[len(row["input_ids"])] for row in batch])
    longest = int(lengths.max())

    def padded(name, value):
        return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in batch])

    return {
        "input_ids": padded("input_ids", 0),
        "labels": padded("labels", -100),
        "attention_mask": (torch.arange(longest) < lengths).long(),
    }


def arguments(output, **changes):
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        "seed": 3,
    }
    return TrainingArguments(output_dir=str(output), **(settings | changes))


def made(kind, model, output, **changes):
    return kind(
        model=model,
        args=arguments(output, **changes),
        train_dataset=rows(24, 0),
        eval_dataset=rows(6, 1),
        data_collator=collate,
    )


def course(trainer):
    """Losses and gradient norms of each step."""
    log = trainer.state.log_history
    return [(entry["loss"], entry["grad_norm"]) for entry in log if "loss" in entry]


def tensors(folder):
    return load_file(folder / "adapter_model.safetensors")


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_course_is_that_of_peft(tmp_path, smoothing):
    settings = {"label_smoothing_factor": smoothing}
    ours = made(ince.Trainer, adapted(base(), lora_dropout=0.0), tmp_path / "a", **settings)
    config = peft.LoraConfig(**(LORA | {"lora_dropout": 0.0}))
    their_model = peft.get_peft_model(base(), config)
    their_model.load_state_dict(ours.model.state_dict())
    theirs = made(transformers.Trainer, their_model, tmp_path / "b", **settings)
    assert ours.evaluate()["eval_loss"] == pytest.approx(theirs.evaluate()["eval_loss"])
    ours.train()
    theirs.train()
    assert course(ours) == [pytest.approx(each, rel=1e-4) for each in course(theirs)]
    assert course(ours)[-1][0] < course(ours)[0][0]


@pytest.mark.parametrize("bits", [16, 4])
def test_a_checkpoint_holds_the_adapter_and_no_base(folder, tmp_path, bits):
    def fresh():
        return in_4_bits(folder) if bits == 4 else base().bfloat16()

    trainer = made(ince.Trainer, adapted(fresh()), tmp_path, save_strategy="steps", save_steps=3)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    for number in (3, 6):
        files = {path.name for path in (tmp_path / f"checkpoint-{number}").iterdir()}
        assert files == OF_ADAPTER | OF_TRAINER
    settings = json.loads((tmp_path / "checkpoint-6" / "training_args.json").read_text())
    assert settings["learning_rate"] == 1e-2
    loaded = ince.PeftModel.from_pretrained(fresh(), tmp_path / "checkpoint-6")
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, trainer.model.eval()(IDS).logits)
    if bits == 16:
        theirs = peft.PeftModel.from_pretrained(fresh(), tmp_path / "checkpoint-6")
        with torch.no_grad():
            torch.testing.assert_close(theirs(IDS).logits, loaded(IDS).logits, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("bits", [16, 4])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(folder, tmp_path, bits):
    def fresh(seed):
        return adapted(in_4_bits(folder) if bits == 4 else base(), seed)

    settings = {"save_strategy": "steps", "save_steps": 3, "max_grad_norm": 0.5}
    whole = made(ince.Trainer, fresh(1), tmp_path / "whole", **settings)
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "again" / "checkpoint-3")
    again = made(ince.Trainer, fresh(2), tmp_path / "again", **settings)  # begins elsewhere
    again.train(resume_from_checkpoint=True)
    assert course(again) == course(whole)
    ends = [tmp_path / name / "checkpoint-6" for name in ("whole", "again")]
    assert_equal(tensors(ends[1]), tensors(ends[0]))
    states = [torch.load(end / "optimizer.pt", weights_only=True)["state"] for end in ends]
    assert states[0].keys() == states[1].keys()
    for key, state in states[0].items():
        assert_equal(states[1][key], state)


def test_the_best_comes_back_at_the_end(tmp_path):
    settings = {
        "load_best_model_at_end": True,
        "save_strategy": "steps",
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "learning_rate": 0.3,  # soon worse than at the start
        "lr_scheduler_type": "constant",
    }
    trainer = made(ince.Trainer, adapted(base()), tmp_path, **settings)
    trainer.train()
    losses = [each["eval_loss"] for each in trainer.state.log_history if "eval_loss" in each]
    best = losses.index(min(losses)) + 1
    assert best < 6
    trainer.save_model(str(tmp_path / "end"))
    assert_equal(tensors(tmp_path / "end"), tensors(tmp_path / f"checkpoint-{best}"))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses))


def test_other_adapters_are_kept_as_they_are(tmp_path):
    model = adapted(base())
    model.add_adapter("other", ince.LoraConfig(**(LORA | {"init_lora_weights": "gaussian"})))
    model.set_adapter("default")
    settings = {"save_strategy": "steps", "save_steps": 3}
    trainer = made(ince.Trainer, model, tmp_path, **settings)
    trainer.train()
    checkpoint = tmp_path / "checkpoint-3"
    assert_equal(tensors(checkpoint / "other"), tensors(tmp_path / "checkpoint-6" / "other"))
    made(ince.Trainer, model, tmp_path, **settings).train(resume_from_checkpoint=str(checkpoint))
    status = model.get_model_status()
    assert status.requires_grad == {"default": True, "other": False}
    assert status.active_adapters == ["default"]


def test_what_is_frozen_of_an_adapter_stays_frozen(tmp_path):
    model = adapted(base())
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    settings = {"save_strategy": "steps", "save_steps": 3}
    made(ince.Trainer, model, tmp_path, **settings).train()
    trainer = made(ince.Trainer, model, tmp_path, **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_B" in name for name in trained)
