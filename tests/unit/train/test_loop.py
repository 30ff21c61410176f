import json
import os
import signal

import pytest
import torch
from torch import nn

from ince.data import Example
from ince.errors import CorruptFileError, InterruptedRunError, TrainingError
from ince.lora import LoraConfig, get_peft_model
from ince.train import TrainConfig, train
from ince.train.checkpoint import latest_checkpoint


class Watcher:
    """An observer that remembers, and may act at a step."""

    def __init__(self, at=None, act=None):
        self.steps, self.evaluations, self.lines = [], [], []
        self.at, self.act = at, act
        self.begun = None

    def started(self, first_step, num_steps):
        self.begun = (first_step, num_steps)

    def stepped(self, report):
        self.steps.append((report.step, report.loss))
        if report.step == self.at:
            self.act()

    def evaluated(self, step, loss):
        self.evaluations.append((step, loss))

    def said(self, line):
        self.lines.append(line)


def examples(num=24):
    torch.manual_seed(5)
    made = []
    for i in range(num):
        ids = tuple(torch.randint(3, 200, (6 + i % 9,)).tolist())
        made.append(Example(ids, (*[False] * 3, *[True] * (len(ids) - 3)), f"data.jsonl:{i + 1}"))
    return made


def run(folder, tiny_llama, observer=None, *, digest="d", dropout=0.1, **changes):
    torch.manual_seed(11)
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, lora_dropout=dropout))
    settings = {"batch_tokens": 32, "lr": 1e-2, "epochs": 2, "save_every": 3} | changes
    names = ("evaluate", "sample", "stop_after", "lr_at")
    extra = {k: settings.pop(k) for k in names if k in settings}
    result = train(
        model,
        examples(),
        TrainConfig(**settings),
        run_dir=folder,
        recipe_digest=digest,
        packing=True,
        max_length=32,
        pad_id=2,
        observer=observer or Watcher(),
        **extra,
    )
    return model, result


def trained(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_it_learns_and_says_what_it_did(tmp_path, tiny_llama):
    watcher = Watcher()
    _, result = run(tmp_path, tiny_llama, watcher, epochs=6)
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, result.steps + 1))
    losses = [line["loss"] for line in lines]
    in_pass = len(losses) // 6
    assert sum(losses[-in_pass:]) < sum(losses[:in_pass]) - 0.05 * in_pass
    assert result.final_loss == lines[-1]["loss"]
    assert result.epochs == pytest.approx(6)
    assert lines[-1]["target_tokens"] == result.num_targets
    assert lines[-1]["tokens"] == result.num_tokens
    assert watcher.begun == (0, result.steps)


class PowerGoneError(Exception):
    """Stands for the power going off: nothing is saved on the way out."""


@pytest.mark.parametrize("at", [4, 7])
def test_a_resumed_run_equals_an_uninterrupted_one_byte_for_byte(tmp_path, tiny_llama, at):
    """With dropout, so that the random numbers count, too."""
    whole, expected = run(tmp_path / "whole", tiny_llama)

    def stop():
        raise PowerGoneError

    with pytest.raises(PowerGoneError):
        run(tmp_path / "cut", tiny_llama, Watcher(at, stop))
    torch.rand(17)  # another place in the global random numbers
    watcher = Watcher()
    resumed, result = run(tmp_path / "cut", tiny_llama, watcher)
    assert watcher.begun[0] == at - at % 3
    before, after = trained(whole), trained(resumed)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (result.steps, result.num_targets) == (expected.steps, expected.num_targets)

    def losses(folder):
        return [(line["step"], line["loss"]) for line in log(folder)]

    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_stopped_at_a_step_it_goes_on_as_if_it_had_not_been(tmp_path, tiny_llama):
    whole, expected = run(tmp_path / "whole", tiny_llama, evaluate=lambda: 1.5)
    _, part = run(tmp_path / "cut", tiny_llama, evaluate=lambda: 1.5, stop_after=4, save_every=50)
    assert part.steps == 4
    assert log(tmp_path / "cut")[-1] == {"step": 4, "eval_loss": 1.5}
    _, same = run(tmp_path / "cut", tiny_llama, stop_after=4, save_every=50)
    assert same == part
    resumed, result = run(tmp_path / "cut", tiny_llama, stop_after=expected.steps + 9)
    before, after = trained(whole), trained(resumed)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert result.steps == expected.steps
    rates = [
        [line["lr"] for line in log(tmp_path / name) if "lr" in line] for name in ("cut", "whole")
    ]
    assert rates[0] == rates[1]


def test_rates_can_be_given_in_place_of_the_schedule(tmp_path, tiny_llama):
    run(tmp_path, tiny_llama, lr_at=lambda step: 1e-4 * 2**step, max_steps=4)
    assert [line["lr"] for line in log(tmp_path)] == [1e-4, 2e-4, 4e-4, 8e-4]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_first_and_the_run_goes_on_later(tmp_path, tiny_llama, number):
    whole, _ = run(tmp_path / "whole", tiny_llama)
    handler = signal.getsignal(number)
    watcher = Watcher(5, lambda: os.kill(os.getpid(), number))
    with pytest.raises(InterruptedRunError, match="after step 5") as caught:
        run(tmp_path / "cut", tiny_llama, watcher)
    assert caught.value.exit_code == 130
    assert signal.getsignal(number) is handler
    found = latest_checkpoint(tmp_path / "cut", warn=pytest.fail)
    assert found.state.step == 5
    resumed, _ = run(tmp_path / "cut", tiny_llama)
    before, after = trained(whole), trained(resumed)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_second_signal_stops_at_once(tmp_path, tiny_llama):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tiny_llama, Watcher(2, twice))


def test_accumulation_is_weighted_by_targets(tmp_path, tiny_llama):
    """Micro-batches of very different numbers of targets give the update of one batch."""
    found = []
    for name, micro in (("whole", None), ("parts", 32)):
        model, _ = run(
            tmp_path / name,
            tiny_llama,
            dropout=0.0,
            batch_tokens=160,
            micro_batch_tokens=micro,
            max_steps=2,
            lr=1e-3,
        )
        found.append(trained(model))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-6)


def test_evaluation_and_samples_come_at_their_intervals(tmp_path, tiny_llama):
    asked = []
    sample = [{"prompt": "p", "expected": "e", "output": "o"}]
    _, result = run(
        tmp_path,
        tiny_llama,
        max_steps=7,
        eval_every=3,
        sample_every=2,
        evaluate=lambda: asked.append(1) or 1.5,
        sample=lambda: sample,
    )
    assert len(asked) == 3
    assert [line["step"] for line in log(tmp_path) if "eval_loss" in line] == [3, 6, 7]
    assert [line["step"] for line in log(tmp_path) if "samples" in line] == [2, 4, 6]
    assert result.steps == 7


def test_checkpoints_of_another_recipe_are_refused(tmp_path, tiny_llama):
    run(tmp_path, tiny_llama, max_steps=3)
    with pytest.raises(CorruptFileError, match="another recipe, base or data"):
        run(tmp_path, tiny_llama, digest="other", max_steps=3)


def test_a_loss_that_is_not_finite_names_rows_and_changes_nothing(tmp_path, tiny_llama):
    model = get_peft_model(tiny_llama(), LoraConfig(r=2))
    before = trained(model)
    with torch.no_grad():
        model.get_base_model().model.norm.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"(?s)not finite at step 1.*data.jsonl:"):
        train(
            model,
            examples(),
            TrainConfig(batch_tokens=32),
            run_dir=tmp_path,
            recipe_digest="d",
            packing=True,
            max_length=32,
            pad_id=2,
            observer=Watcher(),
        )
    after = trained(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_model_without_an_adapter_has_nothing_to_train(tmp_path):
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(TrainingError, match="nothing to train"):
        train(
            model,
            examples(),
            TrainConfig(),
            run_dir=tmp_path,
            recipe_digest="d",
            packing=True,
            max_length=32,
            pad_id=2,
            observer=Watcher(),
        )


def test_b_learns_faster_with_lora_plus(tmp_path, tiny_llama):
    """After one step of AdamW, a weight has moved by its rate and no more."""
    moved = {}
    for name, ratio in (("plain", None), ("plus", 8.0)):
        model, _ = run(
            tmp_path / name,
            tiny_llama,
            dropout=0.0,
            max_steps=1,
            warmup_ratio=0.0,
            loraplus_lr_ratio=ratio,
        )
        found = trained(model)
        moved[name] = max(t.abs().max().item() for n, t in found.items() if "lora_B" in n)
    assert moved["plain"] == pytest.approx(1e-2, rel=1e-3)
    assert moved["plus"] == pytest.approx(8e-2, rel=1e-3)


def test_a_run_with_lora_plus_resumes_to_the_bit(tmp_path, tiny_llama):
    straight, _ = run(tmp_path / "a", tiny_llama, loraplus_lr_ratio=16)
    stopped = Watcher(at=4, act=lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(InterruptedRunError):
        run(tmp_path / "b", tiny_llama, stopped, loraplus_lr_ratio=16)
    resumed, _ = run(tmp_path / "b", tiny_llama, loraplus_lr_ratio=16)
    wanted, got = trained(straight), trained(resumed)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
