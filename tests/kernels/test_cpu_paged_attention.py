"""Paged attention on the CPU against the reference, in each instruction set and for any threads.

What lies in blocks beyond a sequence's length is not a number here, so that whoever reads it shows.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ince.ops import cpu, reference
from ince.ops.cpu.paged_attention import paged_attention, write_kv_

PRECISION = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}

# Without a compiler there is none, and the reference is compared with itself.
INSTRUCTION_SETS = cpu.instruction_sets() or (None,)


def each_result(call):
    """Results of `call` in each instruction set; whatever the threads, the same."""
    before, threads = cpu.use_instruction_set(), torch.get_num_threads()
    try:
        for name in INSTRUCTION_SETS:
            cpu.use_instruction_set(name)
            found = []
            for count in (1, 2):
                torch.set_num_threads(count)
                found.append(call())
            assert torch.equal(found[0].nan_to_num(99), found[1].nan_to_num(99))
            yield found[0]
    finally:
        torch.set_num_threads(threads)
        cpu.use_instruction_set(before)


def drawn(sequences, heads, key_heads, width, places, dtype, seed=0):
    """`sequences`: (length, queries) of each."""
    generator = torch.Generator().manual_seed(seed)
    lengths, counts = zip(*sequences, strict=True)
    used = [-(-length // places) for length in lengths]
    order = torch.randperm(sum(used) + 1, generator=generator).int()
    pools = torch.randn(2, len(order), places, key_heads, width, generator=generator).to(dtype)
    table = torch.full((len(lengths), max(used) + 1), -1, dtype=torch.int32)
    first = 0
    for row, (length, count) in enumerate(zip(lengths, used, strict=True)):
        table[row, :count] = order[first : first + count]
        first += count
        if length % places:
            pools[:, table[row, count - 1], length % places :] = torch.nan
    q = torch.randn(sum(counts), heads, width, generator=generator).to(dtype)
    starts = torch.tensor([0, *counts]).cumsum(0).int()
    return q, *pools, table, starts, torch.tensor(lengths, dtype=torch.int32)


def assert_close(found, args, options):
    dtype = found.dtype
    wide = [arg.float() if arg.is_floating_point() else arg for arg in args]
    expected = reference.paged_attention(*wide, *options)
    # Rounded once; sums, and what a score is off by, in float32.
    largest = float(args[2].float().nan_to_num().abs().max())
    error = (found.float() - expected).abs()
    assert bool((error <= PRECISION[dtype] * expected.abs() + 4e-6 * largest).all())


sequence = st.integers(1, 70).flatmap(
    lambda length: st.tuples(
        st.just(length), st.integers(0, length) | st.integers(0, min(4, length))
    )
)


@given(
    sequences=st.lists(sequence, min_size=1, max_size=5),
    heads=st.sampled_from([(1, 1), (9, 3), (4, 1), (6, 2), (2, 2), (7, 1)]),
    width=st.sampled_from([1, 7, 16, 40, 64, 80]),
    places=st.sampled_from([1, 5, 16, 32]),
    dtype=st.sampled_from(list(PRECISION)),
    window=st.sampled_from([0, 0, 1, 13, 100]),
    softcap=st.sampled_from([0.0, 0.0, 2.0]),
    seed=st.integers(0, 100),
)
@settings(max_examples=60)
def test_it_is_the_reference(sequences, heads, width, places, dtype, window, softcap, seed):
    args = drawn(sequences, *heads, width, places, dtype, seed)
    options = width**-0.5, window, softcap
    for found in each_result(lambda: paged_attention(*args, *options)):
        assert_close(found, args, options)


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
@pytest.mark.parametrize("window", [0, 300])
def test_long_contexts_are_divided_and_put_together(dtype, window):
    sequences = [(1500, 1), (700, 3), (513, 1), (900, 150), (256, 1), (300, 0), (12, 12)]
    args = drawn(sequences, 6, 2, 64, 16, dtype)
    options = 0.125, window, 0.0
    for found in each_result(lambda: paged_attention(*args, *options)):
        assert_close(found, args, options)


def test_scores_that_differ_by_hundreds_lose_nothing():
    args = drawn([(1030, 1), (1030, 30)], 2, 1, 32, 16, torch.float32)
    args = (args[0] * 60, *args[1:])
    for found in each_result(lambda: paged_attention(*args, 1.0, 0, 0.0)):
        expected = reference.paged_attention(*args, 1.0, 0, 0.0)
        assert float((found - expected).abs().max()) < 2e-3


def test_what_is_not_a_number_stays_so_and_stays_where_it_is():
    args = drawn([(600, 1), (600, 1), (40, 40)], 2, 1, 16, 16, torch.float32)
    args[1][args[3][0, 3], 2] = torch.nan
    for found in each_result(lambda: paged_attention(*args, 1.0, 0, 0.0)):
        assert found[0].isnan().all()
        assert not found[1:].isnan().any()


def test_queries_and_pools_of_other_layouts():
    args = drawn([(40, 9), (33, 1)], 4, 2, 16, 16, torch.float32)
    expected = reference.paged_attention(*args, 0.25, 0, 0.0)
    heads_first = args[0].transpose(0, 1).contiguous().transpose(0, 1)
    gaps = torch.stack((args[0], args[0]), -1).flatten(-2)[..., ::2]
    pool = args[1].transpose(1, 2).contiguous().transpose(1, 2)
    for changed in ((heads_first, *args[1:]), (gaps, *args[1:]), (args[0], pool, *args[2:])):
        for found in each_result(lambda changed=changed: paged_attention(*changed, 0.25, 0, 0.0)):
            torch.testing.assert_close(found, expected)
            assert found.is_contiguous()


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
@pytest.mark.parametrize("num_tokens", [0, 3, 400])
def test_keys_and_values_are_written_as_the_reference_does(dtype, num_tokens):
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 3, num_tokens, 24, generator=generator).to(dtype).transpose(1, 2)
    v = torch.stack((v, v), -1).flatten(-2)[..., ::2]
    slots = torch.randperm(27 * 16, generator=generator)[:num_tokens]
    before = torch.randn(2, 27, 16, 3, 24, generator=generator).to(dtype)
    expected = before.clone()
    reference.write_kv_(*expected, k, v, slots)

    def written():
        pools = before.clone()
        write_kv_(*pools, k, v, slots)
        return pools

    for found in each_result(written):
        assert torch.equal(found, expected)


def test_pools_with_gaps_are_written_into_by_the_reference():
    pools = torch.zeros(2, 3, 2, 4, 8).transpose(2, 3)
    k, v = torch.randn(2, 1, 2, 8)
    write_kv_(*pools, k, v, torch.tensor([5]))
    assert torch.equal(pools[0, 1, 1], k[0])
    assert torch.equal(pools[1, 1, 1], v[0])
