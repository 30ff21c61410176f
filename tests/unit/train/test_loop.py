import os
import signal

import pytest
import torch
from torch import nn

from ince import heap
from ince.errors import ConfigError, CorruptFileError, InterruptedRunError, TrainingError
from ince.train import TrainConfig, train
from ince.train.checkpoint import latest_checkpoint


def test_it_learns_and_says_what_it_did(tmp_path, small_run):
    watcher = small_run.Watcher()
    _, result = small_run(tmp_path, watcher, epochs=6)
    lines = small_run.log(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, result.steps + 1))
    losses = [line["loss"] for line in lines]
    in_pass = len(losses) // 6
    assert sum(losses[-in_pass:]) < sum(losses[:in_pass]) - 0.05 * in_pass
    assert result.final_loss == lines[-1]["loss"]
    assert result.epochs == pytest.approx(6)
    assert lines[-1]["target_tokens"] == result.num_targets
    assert lines[-1]["tokens"] == result.num_tokens
    assert watcher.begun == (0, result.steps)


def test_the_heap_is_compact_while_it_trains_if_it_is_asked_for(tmp_path, small_run, monkeypatch):
    said = []
    monkeypatch.setattr(heap, "_mallopt", lambda: lambda *option: said.append(option))
    plain, _ = small_run(tmp_path / "plain", epochs=1)
    assert said == []
    compact, _ = small_run(tmp_path / "compact", epochs=1, compact_heap=True)
    assert [option for option, _ in said] == [-3, -3]
    before, after = small_run.trained(plain), small_run.trained(compact)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("at", [4, 7])
def test_a_resumed_run_equals_an_uninterrupted_one_byte_for_byte(tmp_path, small_run, at):
    """With dropout, so that the random numbers count, too."""
    whole, expected = small_run(tmp_path / "whole")
    small_run.cut(tmp_path / "cut", at)
    torch.rand(17)  # another place in the global random numbers
    watcher = small_run.Watcher()
    resumed, result = small_run(tmp_path / "cut", watcher)
    assert watcher.begun[0] == at - at % 3
    before, after = small_run.trained(whole), small_run.trained(resumed)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (result.steps, result.num_targets) == (expected.steps, expected.num_targets)

    def losses(folder):
        return [(line["step"], line["loss"]) for line in small_run.log(folder)]

    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_stopped_at_a_step_it_goes_on_as_if_it_had_not_been(tmp_path, small_run):
    whole, expected = small_run(tmp_path / "whole", evaluate=lambda: 1.5)
    _, part = small_run(tmp_path / "cut", evaluate=lambda: 1.5, stop_after=4, save_every=50)
    assert part.steps == 4
    assert small_run.log(tmp_path / "cut")[-1] == {"step": 4, "eval_loss": 1.5}
    _, same = small_run(tmp_path / "cut", stop_after=4, save_every=50)
    assert same == part
    resumed, result = small_run(tmp_path / "cut", stop_after=expected.steps + 9)
    before, after = small_run.trained(whole), small_run.trained(resumed)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert result.steps == expected.steps
    rates = [
        [line["lr"] for line in small_run.log(tmp_path / name) if "lr" in line]
        for name in ("cut", "whole")
    ]
    assert rates[0] == rates[1]


def test_rates_can_be_given_in_place_of_the_schedule(tmp_path, small_run):
    small_run(tmp_path, lr_at=lambda step: 1e-4 * 2**step, max_steps=4)
    assert [line["lr"] for line in small_run.log(tmp_path)] == [1e-4, 2e-4, 4e-4, 8e-4]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_first_and_the_run_goes_on_later(tmp_path, small_run, number):
    whole, _ = small_run(tmp_path / "whole")
    handler = signal.getsignal(number)
    watcher = small_run.Watcher(5, lambda: os.kill(os.getpid(), number))
    with pytest.raises(InterruptedRunError, match="after step 5") as caught:
        small_run(tmp_path / "cut", watcher)
    assert caught.value.exit_code == 130
    assert signal.getsignal(number) is handler
    found = latest_checkpoint(tmp_path / "cut", warn=pytest.fail)
    assert found.state.step == 5
    resumed, _ = small_run(tmp_path / "cut")
    before, after = small_run.trained(whole), small_run.trained(resumed)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_second_signal_stops_at_once(tmp_path, small_run):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path, small_run.Watcher(2, twice))


def test_accumulation_is_weighted_by_targets(tmp_path, small_run):
    """Micro-batches of very different numbers of targets give the update of one batch."""
    found = []
    for name, micro in (("whole", None), ("parts", 32)):
        model, _ = small_run(
            tmp_path / name,
            dropout=0.0,
            batch_tokens=160,
            micro_batch_tokens=micro,
            max_steps=2,
            lr=1e-3,
        )
        found.append(small_run.trained(model))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-6)


def test_evaluation_and_samples_come_at_their_intervals(tmp_path, small_run):
    asked = []
    sample = [{"prompt": "p", "expected": "e", "output": "o"}]
    _, result = small_run(
        tmp_path,
        max_steps=7,
        eval_every=3,
        sample_every=2,
        evaluate=lambda: asked.append(1) or 1.5,
        sample=lambda: sample,
    )
    assert len(asked) == 3
    assert [line["step"] for line in small_run.log(tmp_path) if "eval_loss" in line] == [3, 6, 7]
    assert [line["step"] for line in small_run.log(tmp_path) if "samples" in line] == [2, 4, 6]
    assert result.steps == 7


def test_checkpoints_of_another_recipe_are_refused(tmp_path, small_run):
    small_run(tmp_path, max_steps=3)
    with pytest.raises(CorruptFileError, match="another recipe, base or data"):
        small_run(tmp_path, digest="other", max_steps=3)


def test_a_model_without_an_adapter_has_nothing_to_train(tmp_path, small_run):
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(TrainingError, match="nothing to train"):
        train(
            model,
            small_run.examples(),
            TrainConfig(),
            run_dir=tmp_path,
            recipe_digest="d",
            packing=True,
            max_length=32,
            pad_id=2,
            observer=small_run.Watcher(),
        )


def test_b_learns_faster_with_lora_plus(tmp_path, small_run):
    """After one step of AdamW, a weight has moved by its rate and no more."""
    moved = {}
    for name, ratio in (("plain", None), ("plus", 8.0)):
        model, _ = small_run(
            tmp_path / name,
            dropout=0.0,
            max_steps=1,
            warmup_ratio=0.0,
            loraplus_lr_ratio=ratio,
        )
        found = small_run.trained(model)
        moved[name] = max(t.abs().max().item() for n, t in found.items() if "lora_B" in n)
    assert moved["plain"] == pytest.approx(1e-2, rel=1e-3)
    assert moved["plus"] == pytest.approx(8e-2, rel=1e-3)


def test_a_run_with_lora_plus_resumes_to_the_bit(tmp_path, small_run):
    straight, _ = small_run(tmp_path / "a", loraplus_lr_ratio=16)
    stopped = small_run.Watcher(at=4, act=lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(InterruptedRunError):
        small_run(tmp_path / "b", stopped, loraplus_lr_ratio=16)
    resumed, _ = small_run(tmp_path / "b", loraplus_lr_ratio=16)
    wanted, got = small_run.trained(straight), small_run.trained(resumed)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_rates_by_layer_and_name_resume_to_the_bit(tmp_path, small_run):
    settings = {
        "loraplus_lr_ratio": 4,
        "layer_lr_decay": 0.5,
        "lr_multipliers": {"q_proj": 2.0, r".*\.v_proj\..*": 0.1},
    }
    whole, _ = small_run(tmp_path / "whole", **settings)
    small_run.cut(tmp_path / "cut", 4, **settings)
    resumed, _ = small_run(tmp_path / "cut", **settings)
    before, after = small_run.trained(whole), small_run.trained(resumed)
    assert all(torch.equal(before[name], after[name]) for name in before)
    plain, _ = small_run(tmp_path / "plain", loraplus_lr_ratio=4)
    assert any(not torch.equal(before[n], value) for n, value in small_run.trained(plain).items())


def test_a_pattern_that_matches_nothing_ends_the_run_before_it_begins(tmp_path, small_run):
    with pytest.raises(ConfigError, match="did you mean 'q_proj'"):
        small_run(tmp_path, lr_multipliers={"q_prj": 2.0})
    assert not (tmp_path / "log.jsonl").exists()
