"""AdamW and Lion in 8 bits: against float32, for determinism, for convergence, by algebra."""

import copy
import io
import math

import pytest
import torch
from torch import nn

from ince.errors import ConfigError, CorruptFileError, InputError
from ince.ops import dequantize_8bit, lion_step_
from ince.optim import AdamW8bit, Lion8bit, create_loraplus_optimizer

BOTH = pytest.mark.parametrize("kind", [AdamW8bit, Lion8bit])


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parameters(dtype=torch.float32):
    """One large enough for 8 bits, with a short last block, and one that is not."""
    return [nn.Parameter(draw(50, 101).to(dtype)), nn.Parameter(draw(70, seed=1).to(dtype))]


def train(kind, params, num_steps, *, first=0, optimizer=None, **options):
    optimizer = optimizer or kind(params, **options)
    for number in range(first, first + num_steps):
        for index, parameter in enumerate(params):
            gradient = draw(*parameter.shape, seed=100 * number + index)
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()
    return optimizer


@BOTH
def test_large_tensors_have_codes_and_small_ones_float32(kind):
    params = parameters(torch.bfloat16)
    optimizer = train(kind, params, 1)
    large, small = (optimizer.state[each] for each in params)
    count = 2 if kind is AdamW8bit else 1
    numbers = range(1, count + 1)
    parts = ("state", "qmap", "absmax")
    assert set(large) == {"step", *(f"{part}{i}" for part in parts for i in numbers)}
    assert set(small) == {"step", *(f"state{i}" for i in numbers)}
    assert (large["state1"].dtype, small["state1"].dtype) == (torch.uint8, torch.float32)
    assert large["absmax1"].shape == (math.ceil(5050 / 256),)
    large = kind(params, min_8bit_size=10_000)
    assert train(kind, params, 1, optimizer=large).state[params[0]]["state1"].is_floating_point()


def test_small_tensors_are_torchs_adamw_to_the_bit():
    ours, theirs = ([nn.Parameter(draw(63, 65))] for _ in range(2))
    options = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.99)}
    train(AdamW8bit, ours, 20, **options)
    train(torch.optim.AdamW, theirs, 20, foreach=False, **options)
    assert torch.equal(*ours, *theirs)


def test_adamw_stays_near_float32():
    # A code is off by at most half a step of its map, most by far less: see the operators' tests.
    ours, theirs = parameters(), parameters()
    optimizer = train(AdamW8bit, ours, 60, lr=1e-3)
    exact = train(torch.optim.AdamW, theirs, 60, lr=1e-3)
    one, other = ours[0].detach(), theirs[0].detach()
    moved = (other - draw(50, 101)).abs().mean()
    assert float((one - other).abs().mean()) < 0.05 * float(moved)
    state, torchs = optimizer.state[ours[0]], exact.state[theirs[0]]
    for name, number, signed in (("exp_avg", 1, True), ("exp_avg_sq", 2, False)):
        codes, absmax = state[f"state{number}"], state[f"absmax{number}"]
        moment = dequantize_8bit(codes, absmax, signed=signed)
        scale = absmax.repeat_interleave(256)[: codes.numel()].view_as(codes)
        error = ((moment - torchs[name]).abs() / scale).mean()
        assert float(error) < 0.01


def test_lion_stays_near_float32():
    (parameter,) = params = [nn.Parameter(draw(70, 70))]
    expected, moment = parameter.detach().clone(), torch.zeros(70, 70)
    options = {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0}
    optimizer = train(Lion8bit, params, 30, lr=1e-3)
    for number in range(30):
        lion_step_(expected, draw(70, 70, seed=100 * number), moment, lr=1e-3, **options)
    # Each weight moves by the rate or not: where the sign is in doubt a step differs by two.
    differing = (parameter.detach() - expected).abs() > 5e-4
    assert float(differing.float().mean()) < 0.08
    state = optimizer.state[parameter]
    found = dequantize_8bit(state["state1"], state["absmax1"])
    assert float((found - moment).abs().max()) < 0.1 * float(moment.abs().max())


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_same_steps_give_the_same_bits(kind, dtype):
    runs = [parameters(dtype) for _ in range(2)]
    optimizers = [train(kind, params, 4, lr=1e-2, weight_decay=0.1) for params in runs]
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)
        for name, value in optimizers[0].state[one].items():
            again = optimizers[1].state[other][name]
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(again))


@BOTH
def test_a_least_squares_problem_is_solved(kind):
    x, w = draw(256, 80), draw(80, 60, seed=1)
    (found,) = params = [nn.Parameter(torch.zeros(80, 60))]
    optimizer = kind(params, lr=0.05, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    for _ in range(200):
        optimizer.zero_grad()
        (x @ found - x @ w).square().mean().backward()
        optimizer.step()
        schedule.step()
    assert float((found.detach() - w).square().mean()) < 1e-2 * float(w.square().mean())


def test_adamw_does_not_see_the_size_of_gradients():
    # Powers of two scale moments and their scales exactly, and leave codes as they are.
    runs = []
    for scale in (1.0, 2.0**20):
        (parameter,) = params = [nn.Parameter(draw(5000))]
        optimizer = AdamW8bit(params, eps=0.0)
        for number in range(5):
            parameter.grad = draw(5000, seed=number) * scale
            optimizer.step()
        runs.append((parameter.detach(), optimizer.state[parameter]["state2"]))
    assert all(map(torch.equal, *runs))


@BOTH
def test_a_state_dict_goes_on_to_the_bit(kind):
    params, others = parameters(), parameters()
    optimizer = train(kind, params, 3, lr=1e-2)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    with torch.no_grad():
        for other, parameter in zip(others, params, strict=True):
            other.copy_(parameter)
    again = kind(others, lr=0.5)
    again.load_state_dict(torch.load(buffer, weights_only=True))
    assert again.param_groups[0]["lr"] == 1e-2
    copied, copies = copy.deepcopy((optimizer, params))
    for each, of in ((optimizer, params), (again, others), (copied, copies)):
        train(kind, of, 2, first=3, optimizer=each)
    for parameter, other, third in zip(params, others, copies, strict=True):
        assert torch.equal(parameter, other)
        assert torch.equal(parameter, third)


def test_torchs_adamw_goes_on_in_8_bits():
    params, others = parameters(), parameters()
    theirs = train(torch.optim.AdamW, params, 3)
    ours = AdamW8bit(others)
    ours.load_state_dict(theirs.state_dict())
    large, small = (ours.state[each] for each in others)
    assert large["step"] == small["step"] == 3
    assert torch.equal(small["state2"], theirs.state[params[1]]["exp_avg_sq"])
    moment = theirs.state[params[0]]["exp_avg"]
    error = (dequantize_8bit(large["state1"], large["absmax1"]) - moment).abs().max()
    assert float(error) <= 0.0071 * float(large["absmax1"].max())


@BOTH
def test_groups_closures_and_parameters_without_gradients(kind):
    a, b, c = nn.Parameter(draw(5000)), nn.Parameter(draw(5000)), nn.Parameter(draw(5))
    optimizer = kind([{"params": [a], "lr": 0.0}, {"params": [b, c], "weight_decay": 0.0}])
    before = [each.detach().clone() for each in (a, b, c)]

    def closure():
        optimizer.zero_grad()
        loss = (a * b).sum()
        loss.backward()
        return loss

    expected = float((a * b).sum().detach())
    assert float(optimizer.step(closure).detach()) == expected
    assert torch.equal(a, before[0])
    assert bool((b != before[1]).all())
    assert torch.equal(c, before[2])
    assert c not in optimizer.state
    optimizer.add_param_group({"params": [nn.Parameter(draw(3))], "lr": 1.0})
    assert optimizer.param_groups[2]["min_8bit_size"] == 4096


@BOTH
def test_a_sparse_gradient_moves_nothing(kind):
    dense, table = nn.Parameter(draw(10)), nn.Embedding(100, 50, sparse=True)
    optimizer = kind([dense, table.weight])
    dense.grad = draw(10)
    table(torch.tensor([3])).sum().backward()
    with pytest.raises(InputError, match="sparse gradients"):
        optimizer.step()
    assert torch.equal(dense, draw(10))


def test_a_double_parameter_is_refused():
    parameter = nn.Parameter(torch.ones(3, dtype=torch.float64))
    parameter.grad = torch.ones_like(parameter)
    with pytest.raises(InputError, match="do not know this type"):
        AdamW8bit([parameter]).step()


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"lr": -1.0}, ["lr"]),
        ({"lr": math.nan, "betas": (0.9, 1.0)}, ["lr", "betas"]),
        ({"betas": (0.9,), "weight_decay": "much"}, ["betas", "weight_decay"]),
        ({"min_8bit_size": -1, "weight_decay": math.inf}, ["min_8bit_size", "weight_decay"]),
    ],
)
@BOTH
def test_all_numbers_that_cannot_be_are_named_together(kind, options, expected):
    with pytest.raises(ConfigError) as caught:
        kind(parameters(), **options)
    assert {problem.key for problem in caught.value.problems} == set(expected)
    with pytest.raises(ConfigError):
        kind([{"params": parameters(), **options}])


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda state: state.pop("absmax2"), "not the state"),
        (lambda state: state.update(extra=torch.ones(1)), "not the state"),
        (lambda state: state.update(absmax1=torch.ones(3)), "does not fit"),
        (lambda state: state.update(state2=state["state2"].float()), "does not fit"),
        (lambda state: state.update(state1="codes"), "not the state"),
        (lambda state: state.update(qmap2=state["qmap1"]), "another map"),
        (lambda state: state.update(step=-1), "count of steps"),
        (lambda state: state.update(step=torch.tensor(math.nan)), "count of steps"),
        (lambda state: state.pop("step"), "count of steps"),
    ],
)
def test_a_state_that_is_none_is_refused_whole(change, match):
    params = parameters()
    optimizer = train(AdamW8bit, params, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    change(saved["state"][0])
    others = parameters()
    again = train(AdamW8bit, others, 1, lr=0.5)
    with pytest.raises(CorruptFileError, match=match) as caught:
        again.load_state_dict(saved)
    assert "parameter 0" in str(caught.value)
    assert again.param_groups[0]["lr"] == 0.5
    assert again.state[others[0]]["step"] == 1


def test_the_state_of_lion_is_not_that_of_adamw():
    saved = train(Lion8bit, parameters(), 1).state_dict()
    with pytest.raises(CorruptFileError, match="not the state"):
        AdamW8bit(parameters()).load_state_dict(saved)


def test_another_number_of_groups_is_refused_as_in_torch():
    saved = AdamW8bit(parameters()).state_dict()
    with pytest.raises(ValueError, match="parameter group"):
        AdamW8bit(parameters()[:1]).load_state_dict(saved)


def test_a_gradient_that_is_not_a_number_shows_in_its_block_alone():
    (parameter,) = params = [nn.Parameter(torch.zeros(5000))]
    optimizer = AdamW8bit(params)
    parameter.grad = draw(5000)
    parameter.grad[300] = math.nan
    optimizer.step()
    assert parameter.isnan().nonzero().flatten().tolist() == [300]
    parameter.grad = draw(5000)
    optimizer.step()
    assert parameter.isnan().nonzero().flatten().tolist() == list(range(256, 512))


def test_lora_plus_keeps_embeddings_in_float32():
    model = nn.Sequential(nn.Embedding(100, 64), nn.Linear(64, 80))
    optimizer = create_loraplus_optimizer(model, AdamW8bit, lr=0.1, loraplus_lr_ratio=2.0)
    model(torch.tensor([3])).sum().backward()
    optimizer.step()
    assert optimizer.state[model[0].weight]["state1"].dtype == torch.float32
    assert optimizer.state[model[1].weight]["state1"].dtype == torch.uint8
