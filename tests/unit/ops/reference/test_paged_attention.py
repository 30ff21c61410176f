"""The reference is PyTorch's attention over each sequence's own keys, taken out of the blocks."""

import pytest
import torch
from torch.nn import functional as F

from ince.ops import reference


def sequences(lengths, counts, *, heads=4, key_heads=2, width=8, places=16, seed=0):
    """Contiguous keys of each sequence, and the same in shuffled blocks."""
    generator = torch.Generator().manual_seed(seed)
    num_blocks = [-(-length // places) for length in lengths]
    order = torch.randperm(sum(num_blocks) + 2, generator=generator).int()
    # What belongs to no sequence must never be seen.
    pools = torch.full((2, len(order), places, key_heads, width), torch.nan)
    table = torch.full((len(lengths), max(num_blocks, default=0) + 1), -1, dtype=torch.int32)
    own, first = [], 0
    for row, (length, count) in enumerate(zip(lengths, num_blocks, strict=True)):
        table[row, :count] = order[first : first + count]
        first += count
        own.append(torch.randn(2, length, key_heads, width, generator=generator))
        for place in range(length):
            pools[:, table[row, place // places], place % places] = own[-1][:, place]
    starts = torch.tensor([0, *counts]).cumsum(0).int()
    q = torch.randn(sum(counts), heads, width, generator=generator)
    tables = (table, starts, torch.tensor(lengths, dtype=torch.int32))
    return q, pools, tables, own


@pytest.mark.parametrize("window", [0, 1, 5])
def test_each_sequence_has_attention_of_its_own(window):
    lengths, counts = [40, 1, 17, 16, 7], [1, 1, 17, 3, 0]
    q, pools, tables, own = sequences(lengths, counts)
    found = reference.paged_attention(q, *pools, *tables, 0.3, window, 0.0)
    first = 0
    for length, count, (k, v) in zip(lengths, counts, own, strict=True):
        key, query = torch.arange(length), torch.arange(length - count, length)[:, None]
        mask = key <= query
        if window:
            mask &= key > query - window
        expected = F.scaled_dot_product_attention(
            q[first : first + count].transpose(0, 1),
            k.transpose(0, 1),
            v.transpose(0, 1),
            mask,
            scale=0.3,
            enable_gqa=True,
        )
        torch.testing.assert_close(found[first : first + count], expected.transpose(0, 1))
        first += count


def test_a_softcap_bends_the_scores():
    q, pools, tables, ((k, v),) = sequences([5], [1], heads=1, key_heads=1)
    scores = 3 * torch.tanh(q[0, 0] @ k[:, 0].T * 2.0 / 3)
    expected = scores.softmax(-1) @ v[:, 0]
    found = reference.paged_attention(q, *pools, *tables, 2.0, 0, 3.0)
    torch.testing.assert_close(found[0, 0], expected)


def test_reading_a_prompt_in_pieces_gives_what_one_piece_gives():
    whole, pools, (table, _, _), _ = sequences([37], [37])
    expected = reference.paged_attention(
        whole, *pools, table, torch.tensor([0, 37]).int(), torch.tensor([37]).int(), 0.5, 0, 0.0
    )
    for first, last in ((0, 20), (20, 36), (36, 37)):
        tables = table, torch.tensor([0, last - first]).int(), torch.tensor([last]).int()
        piece = reference.paged_attention(whole[first:last], *pools, *tables, 0.5, 0, 0.0)
        torch.testing.assert_close(piece, expected[first:last])


def test_16_bits_are_rounded_once():
    q, pools, tables, _ = sequences([33, 4], [2, 4])
    q, pools = q.bfloat16(), pools.bfloat16()
    wide = reference.paged_attention(q.float(), *pools.float(), *tables, 0.3, 0, 0.0)
    assert torch.equal(reference.paged_attention(q, *pools, *tables, 0.3, 0, 0.0), wide.bfloat16())
