"""AdamW and Lion in 8 bits beside bitsandbytes, which runs on a CPU too.

There it looks codes up on a grid of 65,536 steps: moments below a 65,536th of their block's
largest are lost, and those near it are rough. Codes are compared where the grid is fine.
"""

import pytest
import torch
from torch import nn

bitsandbytes = pytest.importorskip("bitsandbytes")

from ince.ops import dequantize_8bit, dynamic_map, quantize_8bit  # noqa: E402
from ince.optim import AdamW8bit, Lion8bit  # noqa: E402

KINDS = {AdamW8bit: bitsandbytes.optim.AdamW8bit, Lion8bit: bitsandbytes.optim.Lion8bit}
BOTH = pytest.mark.parametrize("kind", [AdamW8bit, Lion8bit])


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parameters():
    return [nn.Parameter(draw(64, 130)), nn.Parameter(draw(60, seed=1))]


def train(optimizer, params, steps):
    for number in steps:
        for index, parameter in enumerate(params):
            parameter.grad = draw(*parameter.shape, seed=10 * number + index)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("signed", [True, False])
def test_the_maps_are_those_of_bitsandbytes(signed):
    theirs = bitsandbytes.functional.create_dynamic_map(signed=signed)
    torch.testing.assert_close(dynamic_map(signed=signed), theirs, rtol=3e-7, atol=0)


def test_codes_are_those_of_bitsandbytes_but_for_its_grid():
    values = draw(20_000)
    for signed in (True, False):
        numbers = values if signed else values.square()
        code = bitsandbytes.functional.create_dynamic_map(signed=signed)
        theirs, state = bitsandbytes.functional.quantize_blockwise(
            numbers, code=code, blocksize=256
        )
        codes, absmax = quantize_8bit(numbers, signed=signed)
        assert torch.equal(absmax, state.absmax)
        differ = (codes.int() - theirs.int()).abs()
        assert int(differ[dequantize_8bit(codes, absmax, signed=signed).abs() > 1e-2].max()) <= 1
        assert float((differ == 0).float().mean()) > 0.95
        ours = dequantize_8bit(theirs, state.absmax, signed=signed)
        torch.testing.assert_close(
            ours, bitsandbytes.functional.dequantize_blockwise(theirs, state), rtol=1e-6, atol=0
        )


@BOTH
def test_training_goes_as_in_bitsandbytes(kind):
    ours, theirs = parameters(), parameters()
    options = {"lr": 1e-3, "weight_decay": 0.1}
    train(kind(ours, **options), ours, range(20))
    train(KINDS[kind](theirs, **options), theirs, range(20))
    for one, other, start in zip(ours, theirs, parameters(), strict=True):
        moved = float((other - start).detach().abs().mean())
        assert float((one - other).detach().abs().mean()) < 0.05 * moved
    # Small tensors are in float32 in both.
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-6)


@BOTH
@pytest.mark.parametrize("to_ours", [True, False], ids=["theirs in ours", "ours in theirs"])
def test_a_run_goes_on_in_the_other(kind, to_ours):
    writer, reader = (KINDS[kind], kind) if to_ours else (kind, KINDS[kind])
    params, others = parameters(), parameters()
    options = {"lr": 1e-3, "weight_decay": 0.1}
    first = train(writer(params, **options), params, range(5))
    with torch.no_grad():
        for other, parameter in zip(others, params, strict=True):
            other.copy_(parameter)
    second = reader(others, lr=0.5)
    second.load_state_dict(first.state_dict())
    for parameter, other in zip(params, others, strict=True):
        one, copy = first.state[parameter], second.state[other]
        assert one["step"] == copy["step"] == 5
        assert set(one) == set(copy)
        for name in set(one) - {"step", "qmap1", "qmap2"}:
            assert torch.equal(one[name], copy[name])
    train(first, params, range(5, 8))
    train(second, others, range(5, 8))
    for parameter, other in zip(params, others, strict=True):
        assert float((parameter - other).detach().abs().mean()) < 2e-4
