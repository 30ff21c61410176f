import pytest
import torch
from torch import nn

from ince.errors import CorruptFileError
from ince.train.average import AdapterAverage
from ince.train.checkpoint import latest_checkpoint


def parameters(*values, dtype=torch.float32):
    return {f"p{i}": nn.Parameter(torch.tensor(v, dtype=dtype)) for i, v in enumerate(values)}


def set_to(named, value):
    with torch.no_grad():
        for p in named.values():
            p.fill_(value)


def test_it_follows_the_formula_in_float64():
    torch.manual_seed(0)
    named = {"a": nn.Parameter(torch.zeros(50))}
    average = AdapterAverage(named, 0.9)
    expected = torch.zeros(50, dtype=torch.float64)
    for n in range(200):
        with torch.no_grad():
            named["a"].normal_()
        average.update(n)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * named["a"].detach().double()
    torch.testing.assert_close(average.tensors["a"].double(), expected, rtol=1e-5, atol=1e-6)


def test_a_constant_is_its_own_average():
    named = parameters([1.0, 2.0])
    average = AdapterAverage(named, 0.99)
    for n in range(50):
        average.update(n)
    assert torch.equal(average.tensors["p0"], torch.tensor([1.0, 2.0]))


def test_the_start_is_soon_forgotten():
    """A constant decay of 0.999 would leave four fifths of it after two hundred updates."""
    named = parameters([0.0])
    average = AdapterAverage(named, 0.999)
    set_to(named, 1.0)
    for n in range(200):
        average.update(n)
    assert average.tensors["p0"].item() > 0.999


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_put_in_place_and_taken_out_to_the_bit(dtype):
    named = parameters([0.1, 0.2], dtype=dtype)
    average = AdapterAverage(named, 0.5)
    set_to(named, 0.7)
    average.update(0)
    before = {n: p.detach().clone() for n, p in named.items()}
    shadow = average.tensors["p0"].clone()
    assert shadow.dtype == torch.float32

    def measure():
        with average.in_place():
            assert torch.equal(named["p0"], shadow.to(dtype))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure()
    assert all(torch.equal(named[n], before[n]) for n in before)
    assert torch.equal(average.tensors["p0"], shadow)


def test_what_is_measured_and_what_results_is_the_average(tmp_path, small_run):
    model = small_run.model()
    measured = []

    def evaluate():
        measured.append(small_run.trained(model))
        return 9.0 - len(measured)

    _, result = small_run(tmp_path, model=model, ema_decay=0.9, eval_every=2, evaluate=evaluate)
    saved = latest_checkpoint(tmp_path, warn=pytest.fail)
    final = small_run.trained(model)
    assert result.adapter_step == result.steps
    assert final.keys() == saved.tensors["ema"].keys()
    for name, value in final.items():
        assert torch.equal(value, measured[-1][name])
        assert torch.equal(value, saved.tensors["ema"][name])
    assert any(not torch.equal(final[n], saved.tensors["adapter"][n]) for n in final)


def test_training_itself_is_not_changed_by_it(tmp_path, small_run):
    small_run(tmp_path / "plain")
    small_run(tmp_path / "averaged", ema_decay=0.9, eval_every=2, evaluate=lambda: 1.0)
    plain, averaged = (
        latest_checkpoint(tmp_path / name, warn=pytest.fail) for name in ("plain", "averaged")
    )
    for name, value in plain.tensors["adapter"].items():
        assert torch.equal(value, averaged.tensors["adapter"][name])


def test_the_best_average_is_the_result_and_a_resumed_run_has_the_same(tmp_path, small_run):
    losses = [3.0, 1.0, 2.0, 2.5, 2.5, 2.5, 2.5]

    def result_of(folder, **changes):
        left = list(losses)[changes.pop("asked", 0) :]
        model, result = small_run(
            folder,
            max_steps=9,
            eval_every=2,
            ema_decay=0.95,
            evaluate=lambda: left.pop(0),
            **changes,
        )
        return small_run.trained(model), result

    whole, expected = result_of(tmp_path / "whole")
    assert expected.adapter_step == 4
    small_run.cut(
        tmp_path / "cut", 5, max_steps=9, eval_every=2, ema_decay=0.95, evaluate=[1.0, 3.0].pop
    )
    resumed, result = result_of(tmp_path / "cut", asked=2)
    assert result.adapter_step == 4
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_without_an_average_cannot_go_on_with_one(tmp_path, small_run):
    small_run.cut(tmp_path, 5)
    with pytest.raises(CorruptFileError, match="--fresh"):
        small_run(tmp_path, ema_decay=0.9)
