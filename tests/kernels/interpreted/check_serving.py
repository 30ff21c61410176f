"""Kernels of serving in Triton's interpreter, against the reference within rounding."""

import importlib

import pytest
import torch

from ince.ops import reference
from ince.ops.triton.serving import OPERATORS
from ince.ops.triton.serving_proof import cases, difference

# The interpreter's numpy warns of infinities that a selection drops.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

HERE = torch.device("cpu")
NAMES = {operator.name: module for module, each in OPERATORS.items() for operator in each}


def launch_of(name):
    return getattr(importlib.import_module(f"ince.ops.triton.{NAMES[name]}"), name)


@pytest.mark.parametrize("name", NAMES)
def test_every_kernel_passes_its_proof(name):
    assert difference(name, launch_of(name), HERE) is None


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_kernel_does_not_pass(name):
    right = getattr(reference, name)

    def wrong(*args):
        found = right(*args)
        (args[0] if found is None else found).add_(0.25)
        return found

    assert name in difference(name, wrong, HERE)


def test_what_is_not_a_number_beyond_a_sequence_is_not_read():
    for q, k, v, table, starts, lengths, *options in cases("paged_attention", torch.float32):
        expected = reference.paged_attention(q, k, v, table, starts, lengths, *options)
        for pool in (k, v):
            pool[2, 3] = pool[3, 3] = pool[4, 3] = torch.nan
        found = launch_of("paged_attention")(q, k, v, table, starts, lengths, *options)
        torch.testing.assert_close(found, expected)


def test_contexts_of_many_tiles_and_gaps_in_memory():
    generator = torch.Generator().manual_seed(1)
    pools = torch.randn(2, 12, 16, 1, 16, generator=generator)
    tables = (
        torch.randperm(12, generator=generator).int().view(2, 6),
        torch.tensor([0, 70, 71]).int(),
        torch.tensor([81, 90]).int(),
    )
    q = torch.randn(71, 2, 32, generator=generator)[..., ::2]
    for window in (0, 20):
        args = (q, *pools, *tables, 0.25, window, 0.0)
        torch.testing.assert_close(
            launch_of("paged_attention")(*args), reference.paged_attention(*args)
        )
