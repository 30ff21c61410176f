"""How kernels of training are compared: in units of the last place, and in each instruction set."""

import pytest
import torch

from ince.ops import cpu

# Bits of the significand, the leading one included, and the exponent of the smallest normal.
FORMATS = {torch.float32: (24, -126), torch.bfloat16: (8, -126), torch.float16: (11, -14)}


@pytest.fixture(scope="session")
def spacing():
    """A function: the distance between neighbors among the numbers of `dtype`, at `exact`."""

    def distance(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        digits, least = FORMATS[dtype]
        magnitude = exact.double().abs()
        exponent = magnitude.log2().floor().clamp(min=least).nan_to_num(0, 0, least)
        return torch.exp2(exponent - (digits - 1))

    return distance


@pytest.fixture(scope="session")
def assert_within(spacing):
    """A function: `actual` is `exact` but for `units` of its type's last place, and `slack`."""

    def check(actual, exact, *, units=1.0, slack=0.0):
        assert actual.shape == exact.shape
        exact = exact.double()
        # What is beyond the type is an infinity in it.
        is_finite = exact.to(actual.dtype).isfinite()
        error = (actual.double() - exact).abs()
        allowed = units * spacing(exact, actual.dtype) + slack
        same = (actual == exact.to(actual.dtype)) | (actual.isnan() & exact.isnan())
        excess = ((error - allowed) / spacing(exact, actual.dtype)).where(is_finite, torch.inf)
        excess = excess.where(~same, -torch.inf)
        assert bool((excess <= 0).all()), f"off by {float(excess.nan_to_num().max())} units more"

    return check


@pytest.fixture(scope="session")
def in_each_set():
    """A function: results of `call` in each instruction set; equal to the bit, whatever the set.

    And for one thread and two. Without a compiler there is none, and the reference is called.
    """
    sets = cpu.instruction_sets() or (None,)

    def results(call):
        before, threads = cpu.use_instruction_set(), torch.get_num_threads()
        found = []
        try:
            for name in sets:
                cpu.use_instruction_set(name)
                for count in (1, 2):
                    torch.set_num_threads(count)
                    found.append(call())
        finally:
            torch.set_num_threads(threads)
            cpu.use_instruction_set(before)
        for others in found[1:]:
            for one, other in zip(found[0], others, strict=True):
                assert bytes_of(one) == bytes_of(other)
        return found[0]

    def bytes_of(tensor):
        # Not a number is that, whatever its bits.
        tensor = tensor.detach().where(~tensor.isnan(), torch.nan).flatten()
        return tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() else b""

    return results
