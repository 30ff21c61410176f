"""Paged state in 8 bits is that of the optimizers that do not page, wherever its pages are."""

import pytest
import torch
from torch import nn

from ince.errors import CorruptFileError
from ince.optim import AdamW8bit, Lion8bit, PagedAdamW8bit, PagedLion8bit, PagesConfig

PAIRS = ((AdamW8bit, PagedAdamW8bit), (Lion8bit, PagedLion8bit))
BOTH = pytest.mark.parametrize("plain, paged", PAIRS, ids=["adamw", "lion"])
SMALL = 64 * 1024


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parameters(dtype=torch.float32):
    """Pages end within the first, at a block that is not cut short; the others share one."""
    shapes = ((300, 501), (70, 70), (60,))
    return [nn.Parameter(draw(*each, seed=i).to(dtype)) for i, each in enumerate(shapes)]


def train(optimizer, params, steps):
    for number in steps:
        for index, parameter in enumerate(params):
            parameter.grad = draw(*parameter.shape, seed=10 * number + index).to(parameter.dtype)
        optimizer.step()


@BOTH
@pytest.mark.parametrize("memory", [None, 4 * SMALL, 0], ids=["memory", "both", "file"])
def test_steps_are_those_without_pages_to_the_bit(plain, paged, memory, tmp_path):
    pages = PagesConfig(memory=memory, page_bytes=SMALL, directory=tmp_path)
    ours, theirs = parameters(), parameters()
    one, other = paged(ours, pages=pages), plain(theirs)
    train(one, ours, range(4))
    train(other, theirs, range(4))
    assert all(map(torch.equal, ours, theirs))
    saved, expected = one.state_dict()["state"], other.state_dict()["state"]
    for key, state in expected.items():
        assert set(state) == set(saved[key])
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value).float(), saved[key][name].float())


@BOTH
def test_state_dicts_load_on_either_side(plain, paged):
    for writer, reader in ((plain, paged), (paged, plain)):
        params, others = parameters(), parameters()
        first, second = writer(params), reader(others)
        train(first, params, range(2))
        with torch.no_grad():
            for other, parameter in zip(others, params, strict=True):
                other.copy_(parameter)
        second.load_state_dict(first.state_dict())
        train(first, params, range(2, 4))
        train(second, others, range(2, 4))
        assert all(map(torch.equal, params, others))


def test_the_state_of_torchs_adamw_is_coded():
    params, others = parameters(), parameters()
    theirs = torch.optim.AdamW(params)
    train(theirs, params, range(2))
    ours = PagedAdamW8bit(others)
    ours.load_state_dict(theirs.state_dict())
    state = ours.state_dict()["state"]
    assert state[0]["state1"].dtype == torch.uint8
    assert torch.equal(state[2]["state2"], theirs.state[params[2]]["exp_avg_sq"])
    with pytest.raises(CorruptFileError, match="not the state"):
        PagedLion8bit(parameters()).load_state_dict(theirs.state_dict())
