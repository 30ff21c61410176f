"""The reference is LoRA's formula, adapter by adapter: y + s · B A x, scaled and shifted after."""

import torch

from ince.ops import reference


def block_of(A, B, scale, *, turn=None, shift=None):
    """The flat tensor of an adapter of one layer, and the end of its row of a layout."""
    parts, offsets, place = [torch.zeros(3)], [], 3
    for part in (A, (scale * B).T, turn, shift):
        offsets.append(-1 if part is None else place)
        if part is not None:
            parts.append(part.flatten())
            place += part.numel()
    return torch.cat(parts), (A.shape[0], *offsets)


def test_each_segment_has_the_update_of_its_adapter():
    torch.manual_seed(0)
    x, y = torch.randn(9, 5), torch.randn(9, 4)
    factors = [(torch.randn(r, 5), torch.randn(4, r)) for r in (3, 1)]
    turn, shift = torch.randn(4), torch.randn(4)
    first, first_row = block_of(*factors[0], 2.0)
    second, second_row = block_of(*factors[1], 0.5, turn=turn, shift=shift)
    layout = torch.tensor([(1, 0, 2, *second_row), (0, 2, 2, *first_row), (0, 3, 8, *first_row)])
    expected = y.clone()
    (A, B), (A1, B1) = factors
    expected[3:8] += 2.0 * x[3:8] @ A.T @ B.T
    updated = expected[:2] + 0.5 * x[:2] @ A1.T @ B1.T
    expected[:2] = updated + turn * updated + shift
    reference.add_lora_segments_(y, x, [first, second], layout)
    torch.testing.assert_close(y, expected)


def test_a_rank_of_zero_has_only_what_comes_after():
    y = torch.ones(2, 3)
    shift = torch.tensor([1.0, 2.0, 3.0])
    reference.add_lora_segments_(
        y, torch.randn(2, 5), [shift], torch.tensor([(0, 0, 1, 0, -1, -1, -1, 0)])
    )
    assert torch.equal(y, torch.tensor([[2.0, 3.0, 4.0], [1.0, 1.0, 1.0]]))


def test_16_bits_are_rounded_once():
    torch.manual_seed(0)
    x, y = torch.randn(3, 8).bfloat16(), torch.randn(3, 6).bfloat16()
    block = torch.randn(2 * 14)
    layout = torch.tensor([(0, 0, 3, 2, 0, 16, -1, -1)])
    wide = y.float()
    reference.add_lora_segments_(wide, x.float(), [block], layout)
    reference.add_lora_segments_(y, x, [block], layout)
    assert torch.equal(y, wide.bfloat16())
