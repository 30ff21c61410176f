"""The CPU's attention against float64 autograd of the definition, in each instruction set.

An element may be off by rounding once (of the result), and by as much again for each of its terms:
products in bfloat16 round probabilities and their slopes, as PyTorch's fused attention does.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from ince.data import Example, attention_mask, collate, pack_rows
from ince.ops import attention_tiles, cpu, packed_attention, packed_attention_backward, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PRECISION = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}

# Without a compiler there is none, and the reference is compared with itself.
INSTRUCTION_SETS = cpu.instruction_sets() or (None,)


def in_each_instruction_set():
    """The names, each in use while it is looked at."""
    before = cpu.use_instruction_set()
    try:
        for name in INSTRUCTION_SETS:
            cpu.use_instruction_set(name)
            yield name
    finally:
        cpu.use_instruction_set(before)


def drawn(shape, dtype, seed=0, spread=1.0):
    """q, k, v and the gradient of the result, in memory as a projection leaves them."""
    rows, heads, key_heads, num_queries, num_keys, width = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = [(num_queries, heads), (num_keys, key_heads), (num_keys, key_heads)]
    return [
        (torch.randn(rows, places, count, width, generator=generator) * spread)
        .to(dtype)
        .transpose(1, 2)
        for places, count in (*sizes, sizes[0])
    ]


def block_mask(rows, length, seed=0, longest=30):
    """Causal, of documents that follow each other."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.rand(rows, length, generator=generator) < 1 / longest
    document = starts.cumsum(1)
    return ((document[:, :, None] == document[:, None, :]).tril())[:, None]


def exact(tensors, mask, scale):
    """In float64: out, lse and gradients, and the allowances of all but lse."""
    q, k, v, grad = (t.detach().double() for t in tensors)
    group = q.shape[1] // k.shape[1]
    keys, values = (t.repeat_interleave(group, 1).requires_grad_() for t in (k, v))
    q.requires_grad_()
    scores = (q @ keys.mT * scale).masked_fill(~mask, -torch.inf)
    lse = scores.logsumexp(-1)
    p = (scores - lse.nan_to_num(0, 0, 0)[..., None]).exp()
    out = p @ values
    grads = torch.autograd.grad(out, (q, keys, values), grad)
    with torch.no_grad():
        q, keys, values, p = (t.detach() for t in (q, keys, values, p))
        out = out.detach()
        slopes = p * (grad @ values.mT - (grad * out).sum(-1, keepdim=True)) * scale
        # What the mean of the slopes is off by when the result was rounded.
        slopes = slopes.abs() + p * (grad.abs() * out.abs()).sum(-1, keepdim=True) * abs(scale)
        allowed = [
            p @ values.abs(),
            slopes @ keys.abs(),
            slopes.mT @ q.abs(),
            p.mT @ grad.abs(),
        ]

    def summed(t):
        return t.detach().unflatten(1, (k.shape[1], group)).sum(2)

    found = [out, grads[0].detach(), summed(grads[1]), summed(grads[2])]
    return found, lse.detach(), [*allowed[:2], *map(summed, allowed[2:])]


def assert_computes(tensors, mask, scale):
    q, k, v, grad = tensors
    dtype = q.dtype
    expected, expected_lse, terms = exact(tensors, mask, scale)
    for name in in_each_instruction_set():
        tiles = attention_tiles(mask)
        out, lse = packed_attention(q, k, v, mask, scale, tiles=tiles)
        grads = packed_attention_backward(grad, q, k, v, out, lse, mask, scale, tiles=tiles)
        torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)
        for found, wanted, term in zip((out, *grads), expected, terms, strict=True):
            assert found.dtype == dtype
            assert found.transpose(1, 2).is_contiguous()
            # Of float32, scores alone are off by a few units; and 16-bit numbers end somewhere.
            allowed = PRECISION[dtype] * (wanted.abs() + 2 * term) + 2.0**-18 * term + 1e-7
            excess = ((found.double() - wanted).abs() - allowed).max()
            assert excess <= 0, (name, excess)


sizes = st.integers(1, 70)
shapes = st.tuples(
    st.integers(1, 2), st.sampled_from(((1, 1), (4, 2), (3, 1), (6, 2))), sizes, sizes
)


@given(
    shape=shapes,
    width=st.sampled_from((1, 8, 16, 20, 33, 64, 80, 128)),
    dtype=st.sampled_from(DTYPES),
    share=st.sampled_from((0.0, 0.03, 0.5, 0.97, 1.0)),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_any_shape_and_any_mask(shape, width, dtype, share, seed):
    rows, (heads, key_heads), num_queries, num_keys = shape
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, 1, num_queries, num_keys, generator=generator) < share
    tensors = drawn((rows, heads, key_heads, num_queries, num_keys, width), dtype, seed)
    assert_computes(tensors, mask, width**-0.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [(9, 3), (4, 1)], ids=str)
def test_rows_of_documents(dtype, heads):
    tensors = drawn((2, *heads, 200, 200, 64), dtype)
    assert_computes(tensors, block_mask(2, 200), 0.125)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_keys_than_are_held_at_once(dtype):
    """Sums are scaled to a maximum that rises late; the first chunks see nothing at times."""
    tensors = drawn((1, 2, 1, 40, 700, 32), dtype)
    with torch.no_grad():
        tensors[1][:, :, 600:] *= 4
    mask = torch.rand(1, 1, 40, 700, generator=torch.Generator().manual_seed(0)) < 0.3
    mask[:, :, :20, :400] = False
    mask[:, :, 5] = False
    assert_computes(tensors, mask, 0.3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_of_any_size(dtype):
    for spread in (1e-3, 30.0):
        tensors = drawn((1, 2, 2, 50, 50, 64), dtype, spread=spread)
        tensors[3] = tensors[3] / spread
        assert_computes(tensors, block_mask(1, 50), 0.125)
    assert_computes(drawn((1, 2, 2, 50, 50, 64), dtype), block_mask(1, 50), -0.5)


def beginnings():
    """Examples that begin alike, in two ways."""
    generator = torch.Generator().manual_seed(0)
    system = torch.randint(3, 90, (21,), generator=generator).tolist()
    for i in range(14):
        own = torch.randint(3, 90, (9 + i,), generator=generator).tolist()
        tokens = (*system, *([5] * 7 if i % 2 else [6] * 12), *own)
        targets = (*[False] * (len(tokens) - 4), *[True] * 4)
        yield Example(tokens, targets, str(i))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_share_their_beginnings(dtype):
    rows = pack_rows(list(beginnings()), range(14), 160)
    mask = attention_mask(collate(rows, 0))
    assert 0.02 < mask.float().mean() < 0.25
    length = mask.shape[-1]
    assert_computes(drawn((len(mask), 3, 1, length, length, 64), dtype), mask, 0.125)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_query_that_sees_nothing_is_zero_and_teaches_nothing(dtype):
    tensors = drawn((1, 2, 1, 40, 40, 16), dtype)
    mask = block_mask(1, 40)
    mask[:, :, 3:29] = False
    for _ in in_each_instruction_set():
        q, k, v = (t.clone().requires_grad_() for t in tensors[:3])
        out, lse = packed_attention(q, k, v, mask, 0.25)
        out.backward(tensors[3])
        assert (out[:, :, 3:29] == 0).all()
        assert (lse[:, :, 3:29] == -torch.inf).all()
        assert (q.grad[:, :, 3:29] == 0).all()
        for each in (out, q.grad, k.grad, v.grad):
            assert each.isfinite().all()
        nothing = torch.zeros_like(mask)
        out, _ = packed_attention(q, k, v, nothing, 0.25)
        for grad in torch.autograd.grad(out, (q, k, v), tensors[3]):
            assert (grad == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_do_not_change_the_result(dtype):
    tensors = drawn((2, 4, 2, 33, 33, 24), dtype)
    mask = block_mask(2, 33)
    expected = None
    wide_mask = torch.zeros(2, 1, 70, 99, dtype=torch.bool)[:, :, ::2, :33]
    wide_mask[:, :, :33] = mask
    ways = [
        lambda t: t.contiguous(),
        lambda t: torch.cat([t, t], -1)[..., :24],
        lambda t: t.mT.contiguous().mT,
        lambda t: t.flip(0).clone().flip(0),
        lambda t: torch.stack([t, t], -1)[..., 0],
    ]
    for way in ways:
        q, k, v, grad = map(way, tensors)
        for seen in (mask, wide_mask[:, :, :33], mask.mT.contiguous().mT):
            out, lse = packed_attention(q, k, v, seen, 0.2)
            grads = packed_attention_backward(grad, q, k, v, out, lse, seen, 0.2)
            found = (out, lse, *grads)
            expected = expected or found
            for one, other in zip(expected, found, strict=True):
                assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 6, 2, 130, 130, 32), (1, 3, 1, 600, 600, 16)], ids=str)
def test_threads_do_not_change_the_result(shape, dtype):
    q, k, v, grad = drawn(shape, dtype)
    mask = block_mask(shape[0], shape[3], longest=90)
    before = torch.get_num_threads()
    for _ in in_each_instruction_set():
        results = []
        try:
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                out, lse = packed_attention(q, k, v, mask, 0.2)
                grads = packed_attention_backward(grad, q, k, v, out, lse, mask, 0.2)
                results.append((attention_tiles(mask), out, lse, *grads))
        finally:
            torch.set_num_threads(before)
        for other in results[1:]:
            assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("shape", [(1, 1), (3, 16), (16, 16), (17, 40), (50, 33)], ids=str)
def test_tiles_are_those_of_the_definition(shape):
    generator = torch.Generator().manual_seed(0)
    for share in (0.0, 0.01, 0.99, 1.0):
        mask = torch.rand(2, 1, *shape, generator=generator) < share
        for _ in in_each_instruction_set():
            assert torch.equal(attention_tiles(mask), reference.attention_tiles(mask))


def test_errors_in_bfloat16_are_no_larger_than_those_of_torch():
    """Root mean square, against float64, of the result and of each gradient: at most 1.1 times."""
    tensors = drawn((2, 6, 2, 256, 256, 64), torch.bfloat16)
    mask = block_mask(2, 256, longest=90)
    wanted, _, _ = exact(tensors, mask, 0.125)
    q, k, v = (t.clone().requires_grad_() for t in tensors[:3])

    def errors(out):
        grads = torch.autograd.grad(out, (q, k, v), tensors[3])
        pairs = zip((out, *grads), wanted, strict=True)
        return [(one.double() - other).square().mean().sqrt() for one, other in pairs]

    theirs = errors(
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.125, enable_gqa=True)
    )
    for name in in_each_instruction_set():
        ours = errors(packed_attention(q, k, v, mask, 0.125)[0])
        for one, other in zip(ours, theirs, strict=True):
            assert one <= 1.1 * other, (name, ours, theirs)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_come_through(value):
    for dtype in DTYPES:
        q, k, v, _ = drawn((1, 1, 1, 20, 20, 16), dtype)
        q[0, 0, 7, 3] = value
        mask = torch.ones(1, 1, 20, 20, dtype=torch.bool).tril()
        for _ in in_each_instruction_set():
            out, _ = packed_attention(q, k, v, mask, 0.25)
            is_lost = ~out.isfinite().all(-1)[0, 0]
            assert is_lost.tolist() == [i == 7 for i in range(20)]


def test_wide_heads_and_empty_tensors_are_left_to_the_reference():
    for shape in ((1, 1, 1, 5, 5, 257), (0, 2, 1, 5, 5, 8), (1, 2, 1, 0, 5, 8), (1, 2, 1, 5, 0, 8)):
        q, k, v, grad = drawn(shape, torch.float32)
        mask = torch.ones(shape[0], 1, shape[3], shape[4], dtype=torch.bool)
        out, lse = packed_attention(q, k, v, mask, 0.1)
        grads = packed_attention_backward(grad, q, k, v, out, lse, mask, 0.1)
        tiles = attention_tiles(mask)
        assert torch.equal(out, reference.packed_attention(q, k, v, mask, tiles, 0.1)[0])
        for found, like in zip((out, *grads), (q, q, k, v), strict=True):
            assert found.shape == like.shape
            assert found.isfinite().all()
