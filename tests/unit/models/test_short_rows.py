import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ince.models.short_rows import short_row_attention, short_row_forward


def inputs(heads, key_heads, length, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = [(2, heads, length, 8), (2, key_heads, length, 8), (2, key_heads, length, 8)]
    return [torch.randn(s, dtype=dtype, requires_grad=True) for s in shapes]


class Layer(torch.nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.num_key_value_groups = groups
        self.is_causal = True


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (3, 1)])
def test_output_and_gradients_equal_the_fused_ones(heads, key_heads):
    length = 13
    mask = torch.rand(2, 1, length, length) < 0.5
    mask |= torch.eye(length, dtype=torch.bool)
    found = []
    for forward in (short_row_forward, sdpa_attention_forward):
        q, k, v = inputs(heads, key_heads, length)
        out, _ = forward(Layer(heads // key_heads), q, k, v, mask, scaling=0.3)
        (out * torch.arange(out.numel()).view_as(out).double().cos()).sum().backward()
        found.append((out, q.grad, k.grad, v.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_what_it_was_not_made_for_goes_to_transformers(monkeypatch):
    asked = []

    def fake(module, query, key, value, mask, dropout, scaling, **options):
        asked.append(query.shape[2])
        return query.transpose(1, 2), None

    monkeypatch.setattr("transformers.integrations.sdpa_attention.sdpa_attention_forward", fake)
    q, k, v = inputs(4, 2, 9, torch.float32)
    mask = torch.ones(2, 1, 9, 9, dtype=torch.bool)
    with torch.no_grad():
        short_row_forward(Layer(2), q, k, v, mask)
    short_row_forward(Layer(2), q, k, v, None)
    short_row_forward(Layer(2), q, k, v, mask.float())
    short_row_forward(Layer(2), q, k, v, mask, dropout=0.1)
    short_row_forward(Layer(2), q, k, v, mask, softcap=30.0)
    assert len(asked) == 5


def test_a_model_has_its_own_attention_again_afterwards(tiny_llama):
    model = tiny_llama()
    ids = torch.randint(3, 900, (1, 12))
    mask = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
    before = model(input_ids=ids, attention_mask=mask).logits
    kept = []

    def inside():
        with short_row_attention(model) as active:
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
    with short_row_attention(model) as active:
        assert not active
        assert model.config._attn_implementation == "eager"
