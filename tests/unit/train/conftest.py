"""Small runs, and somebody who watches them."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ince.data import Example
from ince.lora import LoraConfig, get_peft_model
from ince.train import TrainConfig, train


class Watcher:
    """An observer that remembers, and may act at a step."""

    def __init__(self, at=None, act=None):
        self.reports, self.evaluations, self.lines = [], [], []
        self.at, self.act = at, act
        self.begun = None

    def started(self, first_step, num_steps):
        self.begun = (first_step, num_steps)

    def stepped(self, report):
        self.reports.append(report)
        if report.step == self.at:
            self.act()

    def evaluated(self, step, loss):
        self.evaluations.append((step, loss))

    def said(self, line):
        self.lines.append(line)


class PowerGoneError(Exception):
    """Stands for the power going off: nothing is saved on the way out."""


def stop_without_saving():
    raise PowerGoneError


class SmallRun:
    """A run of ten small steps over 24 examples; the same one whenever it is started."""

    Watcher = Watcher
    PowerGone = PowerGoneError
    stop = staticmethod(stop_without_saving)

    @staticmethod
    def examples(num=24):
        torch.manual_seed(5)
        made = []
        for i in range(num):
            ids = tuple(torch.randint(3, 200, (6 + i % 9,)).tolist())
            targets = (*[False] * 3, *[True] * (len(ids) - 3))
            made.append(Example(ids, targets, f"data.jsonl:{i + 1}"))
        return made

    @staticmethod
    def base():
        """A Llama of two layers, small enough for a step in some milliseconds."""
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=200,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            pad_token_id=2,
            bos_token_id=1,
            eos_token_id=2,
        )
        return LlamaForCausalLM(config).requires_grad_(False).eval()

    def model(self, *, dropout=0.1, r=2):
        torch.manual_seed(11)
        return get_peft_model(self.base(), LoraConfig(r=r, lora_dropout=dropout))

    def __call__(self, folder, observer=None, *, model=None, dropout=0.1, digest="d", **changes):
        """Train; returns the model and the result. `changes` are of the config or of `train`."""
        settings = {"batch_tokens": 32, "lr": 1e-2, "epochs": 2, "save_every": 3} | changes
        names = ("evaluate", "sample", "stop_after", "lr_at", "record")
        extra = {k: settings.pop(k) for k in names if k in settings}
        model = model or self.model(dropout=dropout)
        packing = settings.pop("packing", True)
        result = train(
            model,
            self.examples(),
            TrainConfig(**settings),
            run_dir=folder,
            recipe_digest=digest,
            packing=packing,
            max_length=32,
            pad_id=2,
            observer=observer or Watcher(),
            **extra,
        )
        return model, result

    def cut(self, folder, at, **changes):
        """The same run, whose power goes off after step `at`."""
        with pytest.raises(PowerGoneError):
            self(folder, Watcher(at, stop_without_saving), **changes)

    @staticmethod
    def trained(model):
        return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

    @staticmethod
    def log(folder):
        return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def small_run():
    return SmallRun()
