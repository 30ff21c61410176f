"""`PagedAdamW` is torch's AdamW, wherever its state is."""

import copy

import pytest
import torch
from torch import nn

from ince.errors import ConfigError, CorruptFileError, TrainingError
from ince.optim import PagedAdamW, PagesConfig

OPTIONS = {"lr": 1e-2, "betas": (0.8, 0.95), "weight_decay": 0.1}

MIXES = {
    "memory": {},
    "file": {"memory": 0},
    "memory and file": {"memory": 40_000},
}


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def states(state_dict):
    return [value for _, each in sorted(state_dict["state"].items()) for value in each.values()]


@pytest.mark.parametrize(
    ("page_bytes", "dtype"),
    [(4096, torch.float32), (5000, torch.bfloat16), (2**20, torch.float16)],
)
@pytest.mark.parametrize("mix", MIXES)
def test_two_hundred_steps_are_those_of_torch(
    some_parameters, train, tmp_path, mix, page_bytes, dtype
):
    expected, found = some_parameters(dtype), some_parameters(dtype)
    reference = torch.optim.AdamW(expected, foreach=False, **OPTIONS)
    if page_bytes > 5000 and mix == "memory and file":
        pytest.skip("all of it is one page")
    pages = PagesConfig(page_bytes=page_bytes, directory=tmp_path, **MIXES[mix])
    optimizer = PagedAdamW(found, pages=pages, **OPTIONS)
    train(reference, expected, 200)
    train(optimizer, found, 200)
    assert same(expected, found)
    assert same(states(reference.state_dict()), states(optimizer.state_dict()))
    usage = optimizer.usage()
    assert (usage.memory_bytes > 0, usage.file_bytes > 0) == (True, mix != "memory")
    optimizer.close()


@pytest.mark.parametrize(
    "budgets",
    [
        {"device": None},
        {"device": 40_000},
        {"memory": 0},
        {"device": 30_000, "memory": 40_000},
    ],
)
def test_an_accelerator_takes_the_same_steps(some_parameters, train, other_device, budgets):
    expected, found = some_parameters(), some_parameters()
    reference = torch.optim.AdamW(expected, foreach=False, **OPTIONS)
    optimizer = PagedAdamW(found, pages=PagesConfig(page_bytes=4096, **budgets), **OPTIONS)
    train(reference, expected, 30)
    train(optimizer, found, 30)
    assert same(expected, found)
    assert same(states(reference.state_dict()), states(optimizer.state_dict()))
    (fake,) = other_device
    usage = optimizer.usage()
    assert (usage.device_bytes > 0) == bool(budgets.get("device", 0) is None or "device" in budgets)
    assert (
        fake.num_up
        >= fake.num_down
        == 30 * sum(page.tier.value != "device" for page in optimizer._store.pages)
    )
    for name in ("device", "memory"):
        if budgets.get(name):
            assert getattr(usage, f"{name}_bytes") <= budgets[name]
    optimizer.close()


def test_maximizing_and_rates_of_groups_are_those_of_torch(some_parameters, train):
    runs = []
    for make in (
        lambda groups: torch.optim.AdamW(groups, foreach=False, maximize=True, **OPTIONS),
        lambda groups: PagedAdamW(
            groups, maximize=True, pages=PagesConfig(page_bytes=4096, memory=0), **OPTIONS
        ),
    ):
        parameters = some_parameters()
        optimizer = make(
            [{"params": parameters[:3]}, {"params": parameters[3:], "lr": 0.3, "weight_decay": 0}]
        )
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        for step in range(6):
            train(optimizer, parameters, step + 1, step)
            schedule.step()
        runs.append(parameters)
    assert same(*runs)


def test_parameters_without_gradient_wait_for_theirs(some_parameters, train):
    def leave_out(step, index):
        return (step + index) % 3 == 0 or (index == 4 and step < 5)

    expected, found = some_parameters(), some_parameters()
    reference = torch.optim.AdamW(expected, foreach=False, **OPTIONS)
    optimizer = PagedAdamW(found, pages=PagesConfig(page_bytes=4096, memory=0), **OPTIONS)
    train(reference, expected, 3, leave_out=leave_out)
    train(optimizer, found, 3, leave_out=leave_out)
    assert set(optimizer.state_dict()["state"]) == set(reference.state_dict()["state"])
    train(reference, expected, 12, 3, leave_out)
    train(optimizer, found, 12, 3, leave_out)
    assert same(expected, found)
    assert same(states(reference.state_dict()), states(optimizer.state_dict()))


def test_a_group_that_comes_later_is_trained_from_then_on(some_parameters, train):
    runs = []
    for cls, more in ((torch.optim.AdamW, {"foreach": False}), (PagedAdamW, {})):
        parameters = some_parameters()
        optimizer = cls(parameters[:2], **OPTIONS, **more)
        train(optimizer, parameters[:2], 3)
        optimizer.add_param_group({"params": parameters[2:], "lr": 0.5})
        train(optimizer, parameters, 6, 3)
        runs.append(parameters)
    assert same(*runs)


def test_weights_with_gaps_are_trained_too(train):
    runs = []
    for cls, more in ((torch.optim.AdamW, {"foreach": False}), (PagedAdamW, {})):
        whole = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
        parameters = [nn.Parameter(whole[:, ::2])]
        train(cls(parameters, **OPTIONS, **more), parameters, 4)
        runs.append(parameters)
    assert same(*runs)


@pytest.mark.parametrize("of_torch", [False, True])
@pytest.mark.parametrize("after", [{}, {"memory": 0}, {"memory": 40_000}])
def test_a_state_goes_on_to_the_bit_on_any_mix(some_parameters, train, of_torch, after):
    expected, found = some_parameters(), some_parameters()
    reference = torch.optim.AdamW(expected, foreach=False, **OPTIONS)
    first = PagedAdamW(found, pages=PagesConfig(page_bytes=4096, memory=0), **OPTIONS)
    train(reference, expected, 5)
    train(first, found, 5)
    state = (reference if of_torch else first).state_dict()
    second = PagedAdamW(found, lr=7.0, pages=PagesConfig(page_bytes=5000, **after))
    second.load_state_dict(copy.deepcopy(state))
    train(reference, expected, 9, 5)
    train(second, found, 9, 5)
    assert same(expected, found)
    assert second.param_groups[0]["lr"] == OPTIONS["lr"]
    assert (second.usage().file_bytes > 0) == bool(after)


def test_torch_goes_on_from_a_paged_state(some_parameters, train):
    straight, found = some_parameters(), some_parameters()
    train(torch.optim.AdamW(straight, foreach=False, **OPTIONS), straight, 9)
    paged = PagedAdamW(found, pages=PagesConfig(page_bytes=4096, memory=0), **OPTIONS)
    train(paged, found, 5)
    optimizer = torch.optim.AdamW(found, foreach=False)
    optimizer.load_state_dict(paged.state_dict())
    train(optimizer, found, 9, 5)
    assert same(straight, found)


def test_entries_are_read_and_put_back_one_by_one(some_parameters, train):
    named = {f"layer.{i}": p for i, p in enumerate(some_parameters())}
    first = PagedAdamW(named.values(), pages=PagesConfig(page_bytes=4096, memory=0), **OPTIONS)
    train(first, list(named.values()), 3)
    entries = {entry.name: entry for entry in first.entries(named)}
    assert len(entries) == 3 * len(named)
    tensors = {name: entry.read() for name, entry in entries.items()}
    for name, entry in entries.items():
        assert (entry.shape, entry.dtype) == (tensors[name].shape, tensors[name].dtype)
        assert entry.num_bytes == tensors[name].nbytes
    second = PagedAdamW(named.values(), pages=PagesConfig(page_bytes=8192, memory=0), **OPTIONS)
    second.load_entries(named, tensors.keys(), tensors.__getitem__)
    assert same(states(first.state_dict()), states(second.state_dict()))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda state: state["state"][0].pop("step"), "moment is missing"),
        (lambda state: state["state"][0].update(step=-1), "count of steps is none"),
        (lambda state: state["state"][0].update(step=float("nan")), "count of steps is none"),
        (lambda state: state["state"][0].pop("exp_avg"), "another optimizer"),
        (lambda state: state["state"][0].update(extra=torch.zeros(1)), "another optimizer"),
        (lambda state: state["state"][0].update(exp_avg=torch.zeros(3)), "another size"),
        (lambda state: state["state"][0].update(exp_avg=None), "another size"),
        (lambda state: state["state"][0].update(exp_avg=torch.zeros(100, 120)), "another shape"),
        (lambda state: state["state"].update({77: state["state"][0]}), "unknown parameter"),
        (lambda state: state.pop("param_groups"), "not the state dict"),
        (lambda state: state.update(state=[]), "not the state dict"),
        (lambda state: state["param_groups"][0]["params"].pop(), "other groups"),
    ],
)
def test_a_state_of_something_else_is_refused_and_changes_nothing(
    some_parameters, train, change, match
):
    parameters = some_parameters()
    optimizer = PagedAdamW(parameters, **OPTIONS)
    train(optimizer, parameters, 2)
    before = states(optimizer.state_dict())
    broken = optimizer.state_dict()
    change(broken)
    with pytest.raises(CorruptFileError, match=match):
        optimizer.load_state_dict(broken)
    assert same(before, states(optimizer.state_dict()))


def test_options_in_a_state_are_looked_at(some_parameters, train):
    parameters = some_parameters()
    reference = torch.optim.AdamW(parameters, amsgrad=True)
    train(reference, parameters, 1)
    with pytest.raises(ConfigError, match="amsgrad"):
        PagedAdamW(parameters).load_state_dict(reference.state_dict())


def test_a_closure_is_called_with_gradients():
    weight = nn.Parameter(torch.ones(2))
    optimizer = PagedAdamW([weight], lr=0.1)

    def closure():
        loss = (weight**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2
    assert (weight < 1).all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda w: setattr(w, "grad", torch.ones(4).to_sparse()), "sparse"),
        (lambda w: setattr(w, "data", torch.ones(4, dtype=torch.float64)), "another type"),
    ],
)
def test_gradients_that_cannot_be_used_change_nothing(change, match):
    first, second = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    optimizer = PagedAdamW([first, second], lr=0.1)
    first.grad, second.grad = torch.ones(4), torch.ones(4)
    change(second)
    with pytest.raises(TrainingError, match=match):
        optimizer.step()
    assert (first == 1).all()
    assert optimizer.state_dict()["state"] == {}


def test_a_parameter_that_changes_its_type_is_noticed():
    weight = nn.Parameter(torch.ones(4))
    optimizer = PagedAdamW([weight])
    weight.grad = torch.ones(4)
    optimizer.step()
    weight.grad = None
    weight.data = torch.ones(4, dtype=torch.float64)
    weight.grad = torch.ones(4, dtype=torch.float64)
    with pytest.raises(TrainingError, match="not what it was"):
        optimizer.step()


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1},
        {"lr": float("nan")},
        {"lr": "1e-3"},
        {"lr": torch.ones(2)},
        {"betas": (1.0, 0.9)},
        {"betas": (0.9,)},
        {"betas": 0.9},
        {"eps": -1e-8},
        {"weight_decay": float("inf")},
    ],
)
def test_numbers_that_cannot_be_are_refused(options):
    (name,) = options
    weights = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    with pytest.raises(ConfigError, match=name):
        PagedAdamW(weights, **options)
    with pytest.raises(ConfigError, match=name):
        PagedAdamW([{"params": weights[:1]}, {"params": weights[1:], **options}])


def test_parameters_that_cannot_be_trained_are_refused():
    optimizer = PagedAdamW([nn.Parameter(torch.ones(2))])
    whole = nn.Parameter(torch.ones(2, dtype=torch.int32), requires_grad=False)
    with pytest.raises(ConfigError, match="floating-point"):
        optimizer.add_param_group({"params": [whole]})
    twice = nn.Parameter(torch.ones(2))
    with pytest.warns(UserWarning, match="duplicate"), pytest.raises(ConfigError, match="twice"):
        optimizer.add_param_group({"params": [twice, twice]})
    assert len(optimizer.param_groups) == 1


def test_a_copy_is_refused_since_it_would_have_no_state():
    with pytest.raises(TrainingError, match="state_dict"):
        copy.deepcopy(PagedAdamW([nn.Parameter(torch.ones(2))]))
