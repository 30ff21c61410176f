"""How a run computes is put on the model, and taken off again."""

import itertools

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ince.data import Example, collate
from ince.lora import LoraConfig, get_peft_model
from ince.train import TrainConfig, compute
from ince.train.compute import computed_as
from ince.train.loss import target_loss


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).requires_grad_(False)


@pytest.fixture
def timed(monkeypatch):
    """A function that sets how long the two ways seem to take."""

    def take(*seconds):
        waiting = itertools.chain(seconds)
        monkeypatch.setattr(compute, "_timed", lambda trial: (trial(), next(waiting))[1])

    return take


def is_compiled(model):
    return any(m._compiled_call_impl is not None for m in model.modules())


def step(model):
    def compute():
        return model(input_ids=torch.arange(5)[None]).logits.sum()

    return compute


def test_by_default_modules_are_fused_and_afterwards_they_are_not(model):
    with computed_as(model, TrainConfig(), trial=step(model), say=print) as report:
        assert report.fused.counts["LlamaMLP"] == 2
        assert report.to_dict()["fused"]["modules"]["LlamaRMSNorm"] == 5
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_fused_run_has_the_losses_of_an_unfused_one(tmp_path, small_run, dtype, near):
    losses = []
    for is_fused in (True, False):
        torch.manual_seed(11)
        config = LoraConfig(r=2, lora_dropout=0.1, target_modules="all-linear")
        model = get_peft_model(small_run.base().to(dtype), config)
        folder = tmp_path / str(is_fused)
        _, result = small_run(folder, model=model, fused=is_fused)
        assert (result.computed["fused"] is not None) is is_fused
        losses.append([line["loss"] for line in small_run.log(folder)])
    assert losses[0] == pytest.approx(losses[1], rel=near)
    assert losses[0][-1] < losses[0][0]


def test_it_may_be_declined(model):
    config = TrainConfig(fused=False)
    with computed_as(model, config, trial=step(model), say=print) as report:
        assert report.fused is None
        assert not any("forward" in vars(module) for module in model.modules())


def test_compiling_is_kept_where_it_helps(model, timed, monkeypatch):
    monkeypatch.setattr(compute, "_compile", lambda layer: layer.compile(backend="eager"))
    timed(2.0, 1.0)
    plain = step(model)()
    with computed_as(model, TrainConfig(compile=True), trial=step(model), say=print) as report:
        assert report.compiled
        assert is_compiled(model)
        assert torch.allclose(step(model)(), plain)
    assert not is_compiled(model)


def test_compiling_is_refused_where_it_does_not(model, timed, monkeypatch):
    monkeypatch.setattr(compute, "_compile", lambda layer: layer.compile(backend="eager"))
    timed(1.0, 1.0)
    said = []
    config = TrainConfig(compile=True)
    with computed_as(model, config, trial=step(model), say=said.append) as report:
        assert not report.compiled
        assert report.fused is not None
        assert not is_compiled(model)
    assert said == ["not compiled: a step takes 1.00 s compiled and 1.00 s as it is"]


def test_a_compiler_that_fails_is_no_failure_of_the_run(model, timed, monkeypatch):
    def fail(_):
        raise RuntimeError("no C++ compiler\nand a long trace")

    monkeypatch.setattr(compute, "_compile", fail)
    timed(1.0)
    said = []
    config = TrainConfig(compile=True)
    with computed_as(model, config, trial=step(model), say=said.append) as report:
        assert not report.compiled
    assert said == ["not compiled: RuntimeError: no C++ compiler"]


def test_the_output_layer_is_looked_at_before_the_first_step(model):
    """During a step, what lies on the embeddings may fit that step's tokens alone."""
    seen = []
    batch = collate([Example(tuple(range(3, 15)), (False, *[True] * 11), "row")], 0)
    model.get_input_embeddings().register_forward_hook(lambda _m, _i, y: seen.append(y.shape))
    with computed_as(model, TrainConfig(), trial=step(model), say=print):
        seen.clear()
        target_loss(model, batch)
    assert seen == [(*batch.input_ids.shape, 32)]
