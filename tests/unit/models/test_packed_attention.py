import gc

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ince.models import packed_attention
from ince.models.packed_attention import packed_attention_forward, packed_row_attention
from ince.ops import cpu

# (rtol, atol): of float64 by plain products, and of what the compiled operator takes.
CLOSE = {
    torch.float64: (1e-9, 1e-9),
    torch.float32: (1e-5, 1e-5),
    torch.bfloat16: (3e-2, 3e-2),
}


def inputs(heads, key_heads, length, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = [(2, heads, length, 8), (2, key_heads, length, 8), (2, key_heads, length, 8)]
    return [torch.randn(s).to(dtype).requires_grad_() for s in shapes]


class Layer(torch.nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.num_key_value_groups = groups
        self.is_causal = True


@pytest.fixture
def asked(monkeypatch):
    """Lengths that went to transformers' own implementation."""
    lengths = []

    def fake(module, query, key, value, mask, dropout, scaling, **options):
        lengths.append(query.shape[2])
        return query.transpose(1, 2), None

    monkeypatch.setattr("transformers.integrations.sdpa_attention.sdpa_attention_forward", fake)
    return lengths


@pytest.mark.parametrize("mask_rows", [1, 2])
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (3, 1)])
def test_output_and_gradients_equal_the_fused_ones(heads, key_heads, dtype, mask_rows):
    length = 37
    mask = torch.rand(mask_rows, 1, length, length) < 0.5
    mask |= torch.eye(length, dtype=torch.bool)
    found = []
    for forward in (packed_attention_forward, sdpa_attention_forward):
        q, k, v = inputs(heads, key_heads, length, dtype)
        out, _ = forward(Layer(heads // key_heads), q, k, v, mask, scaling=0.3)
        (out * torch.arange(out.numel()).view(out.shape).to(dtype).cos()).sum().backward()
        found.append((out, q.grad, k.grad, v.grad))
    rtol, atol = CLOSE[dtype]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


def test_what_it_was_not_made_for_goes_to_transformers(asked):
    q, k, v = inputs(4, 2, 9, torch.float32)
    mask = torch.ones(2, 1, 9, 9, dtype=torch.bool)
    with torch.no_grad():
        packed_attention_forward(Layer(2), q, k, v, mask)
    packed_attention_forward(Layer(2), q, k, v, None)
    packed_attention_forward(Layer(2), q, k, v, mask.float())
    packed_attention_forward(Layer(2), q, k, v, mask.expand(2, 4, 9, 9))
    packed_attention_forward(Layer(2), q, k, v, mask[..., :5])
    packed_attention_forward(Layer(2), q, k, v[..., :4], mask)
    packed_attention_forward(Layer(2), q, k, v, mask, dropout=0.1)
    packed_attention_forward(Layer(2), q, k, v, mask, softcap=30.0)
    packed_attention_forward(Layer(2), q, k, v, mask, s_aux=torch.zeros(4))
    packed_attention_forward(Layer(2), q, k, v, mask, position_bias=torch.zeros(9, 9))
    assert len(asked) == 10


@pytest.mark.parametrize("length", [512, 513])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_without_the_compiled_operator_short_rows_are_plain(asked, monkeypatch, length, dtype):
    monkeypatch.setattr(cpu.attention, "active", lambda: None)
    q, k, v = (torch.randn(1, 1, length, 8, dtype=dtype) for _ in range(3))
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    out, _ = packed_attention_forward(Layer(1), q, k, v, mask)
    assert asked == ([] if length == 512 else [513])
    if length == 512:
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        torch.testing.assert_close(out, expected.transpose(1, 2))


def test_layers_with_one_mask_make_its_tiles_once(monkeypatch):
    made = []

    def counted(mask):
        made.append(mask.shape)
        return torch.ops.ince.attention_tiles(mask)

    monkeypatch.setattr(packed_attention, "attention_tiles", counted)
    if not cpu.instruction_sets():
        return
    q, k, v = inputs(4, 2, 20, torch.float32)
    mask = torch.ones(2, 1, 20, 20, dtype=torch.bool).tril()
    results = [packed_attention_forward(Layer(2), q, k, v, mask)[0] for _ in range(3)]
    assert len(made) == 1
    # A mask that was changed is another one.
    mask[:, :, 17:, :16] = False
    changed = packed_attention_forward(Layer(2), q, k, v, mask)[0]
    assert len(made) == 2
    assert torch.equal(changed[:, :17], results[0][:, :17])
    assert not torch.equal(changed[:, 17:], results[0][:, 17:])
    held = len(packed_attention._TILES)
    del mask, results, changed
    gc.collect()
    assert len(packed_attention._TILES) < held


def test_a_model_has_its_own_attention_again_afterwards(tiny_llama):
    model = tiny_llama()
    ids = torch.randint(3, 900, (1, 12))
    mask = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
    before = model(input_ids=ids, attention_mask=mask).logits
    kept = []

    def inside():
        with packed_row_attention(model) as active:
            assert active
            model.requires_grad_(True)
            kept.append(model(input_ids=ids, attention_mask=mask).logits)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        inside()
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(kept[0], before, rtol=1e-4, atol=1e-5)


def test_another_implementation_is_left_alone(tiny_llama):
    model = tiny_llama()
    model.set_attn_implementation("eager")
    with packed_row_attention(model) as active:
        assert not active
        assert model.config._attn_implementation == "eager"
