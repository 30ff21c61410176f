"""Updates by many adapters on the CPU against the reference, in each instruction set."""

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ince.ops import add_lora_segments_, cpu, reference
from ince.ops.cpu import lora_segments

PRECISION = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
INSTRUCTION_SETS = cpu.instruction_sets() or (None,)


def drawn(segments, num_inputs, num_outputs, dtype, block_dtypes, seed=0):
    """`segments`: (rows, rank, has turn, has shift, rows that follow and are in none) of each."""
    generator = torch.Generator().manual_seed(seed)
    blocks, layout, row = [], [], 1
    for index, (rows, rank, turn, shift, after) in enumerate(segments):
        place, offsets, parts = 3, [], [torch.full((3,), torch.nan)]
        for length, is_there in (
            (rank * num_inputs, rank > 0),
            (rank * num_outputs, rank > 0),
            (num_outputs, turn),
            (num_outputs, shift),
        ):
            offsets.append(place if is_there else -1)
            if is_there:
                parts.append(torch.randn(length, generator=generator))
                place += length
        blocks.append(torch.cat(parts).to(block_dtypes[index % len(block_dtypes)]))
        layout.append((index, row, row + rows, rank, *offsets))
        row += rows + after
    x = torch.randn(row + 1, num_inputs, generator=generator).to(dtype)
    y = torch.randn(row + 1, num_outputs, generator=generator).to(dtype)
    # Blocks in another order than segments.
    order = torch.randperm(len(blocks), generator=generator).tolist()
    layout = torch.tensor(layout, dtype=torch.int64).reshape(-1, 8)
    layout[:, 0] = torch.tensor([order.index(index) for index in layout[:, 0].tolist()])
    return y, x, [blocks[index] for index in order], layout


def assert_is_the_reference(args):
    y, x, blocks, layout = args
    exact = y.double()
    for block, start, stop, rank, a, b, turn, shift in layout.tolist():
        flat = blocks[block].double()
        rows, num_inputs, num_outputs = slice(start, stop), x.shape[1], y.shape[1]
        A = (
            flat[a : a + rank * num_inputs].view(rank, -1)
            if rank
            else flat.new_zeros(1, num_inputs)
        )
        B = (
            flat[b : b + rank * num_outputs].view(rank, -1)
            if rank
            else flat.new_zeros(1, num_outputs)
        )
        exact[rows] += x[rows].double() @ A.T @ B
        if turn >= 0:
            exact[rows] *= 1 + flat[turn : turn + num_outputs]
        if shift >= 0:
            exact[rows] += flat[shift : shift + num_outputs]
    before, threads = cpu.use_instruction_set(), torch.get_num_threads()
    largest = float(exact.abs().max()) if exact.numel() else 0.0
    try:
        for name in INSTRUCTION_SETS:
            cpu.use_instruction_set(name)
            found = []
            for count in (1, 2):
                torch.set_num_threads(count)
                result = y.clone()
                add_lora_segments_(result, x, blocks, layout)
                found.append(result)
            assert torch.equal(*found)
            error = (found[0].double() - exact).abs()
            assert bool((error <= PRECISION[y.dtype] * exact.abs() + 3e-6 * largest).all())
    finally:
        torch.set_num_threads(threads)
        cpu.use_instruction_set(before)


segment = st.tuples(
    st.sampled_from([0, 1, 1, 2, 3, 4, 5, 7, 40]),
    st.integers(0, 9) | st.sampled_from([16, 33, 63, 64]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 0, 0, 2]),
)


@given(
    segments=st.lists(segment, max_size=6),
    num_inputs=st.integers(1, 40) | st.sampled_from([64, 1100]),
    num_outputs=st.integers(1, 40) | st.sampled_from([64, 300]),
    dtype=st.sampled_from(list(PRECISION)),
    block_dtypes=st.sampled_from([(torch.float32,), (torch.bfloat16, torch.float32)]),
    seed=st.integers(0, 100),
)
@settings(max_examples=80)
def test_it_is_the_formula(**case):
    assert_is_the_reference(drawn(**case))


@pytest.mark.parametrize(
    "segments",
    [
        [(1, 64, True, False, 0)],  # one row, divided by ranks and outputs
        [(3, 33, False, True, 0), (9, 8, False, False, 1)],
        [(1, 16, False, False, 0)] * 20,  # an adapter for each thread
        [(130, 16, True, True, 0), (5, 7, False, False, 0)],  # divided by rows
    ],
    ids=["one row", "few rows", "many adapters", "many rows"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_layers_give_the_same_in_any_number_of_threads(segments, dtype):
    assert_is_the_reference(drawn(segments, 1500, 1301, dtype, (torch.float32, torch.bfloat16)))


def test_a_row_does_not_depend_on_its_neighbors():
    y, x, blocks, layout = drawn([(11, 13, True, True, 0)], 70, 50, torch.float32, (torch.float32,))
    together = y.clone()
    add_lora_segments_(together, x, blocks, layout)
    for row in range(1, 12):
        alone = layout.clone()
        alone[0, 1:3] = torch.tensor([row, row + 1])
        result = y.clone()
        add_lora_segments_(result, x, blocks, alone)
        assert torch.equal(result[row], together[row])


def test_slices_of_wider_tensors_are_written_into():
    y, x, blocks, layout = drawn([(3, 4, False, True, 0)], 12, 10, torch.float32, (torch.float32,))
    expected = y.clone()
    reference.add_lora_segments_(expected, x, blocks, layout)
    wide_y, wide_x = torch.zeros(len(y), 30), torch.randn(len(x), 20)
    for columns in (slice(5, 15), slice(0, 30, 3)):
        wide_y.zero_()
        wide_y[:, columns] = y
        wide_x[:, 4:16] = x
        add_lora_segments_(wide_y[:, columns], wide_x[:, 4:16], blocks, layout)
        torch.testing.assert_close(wide_y[:, columns], expected)
        wide_y[:, columns] = 0
        assert not wide_y.any()
    gaps = [torch.stack((block, block), -1).flatten()[::2] for block in blocks]
    result = y.clone()
    add_lora_segments_(result, x, gaps, layout.T.contiguous().T)
    torch.testing.assert_close(result, expected)


def test_adapters_that_go_are_let_go_and_others_in_their_place_are_seen():
    y, x, blocks, layout = drawn([(3, 4, False, False, 0)], 12, 10, torch.float32, (torch.float32,))
    add_lora_segments_(y.clone(), x, blocks, layout)
    gone = weakref.ref(blocks[0])
    kept = blocks[0].clone()
    # Other numbers in the same tensor, then another tensor.
    blocks[0].mul_(2)
    expected, result = y.clone(), y.clone()
    reference.add_lora_segments_(expected, x, blocks, layout)
    add_lora_segments_(result, x, blocks, layout)
    torch.testing.assert_close(result, expected)
    blocks[0].data = kept
    expected, result = y.clone(), y.clone()
    reference.add_lora_segments_(expected, x, blocks, layout)
    add_lora_segments_(result, x, blocks, layout)
    torch.testing.assert_close(result, expected)
    del blocks
    gc.collect()
    assert gone() is None
    assert lora_segments._CELL.adapters is None
