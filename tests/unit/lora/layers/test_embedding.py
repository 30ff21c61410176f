"""Adapters of embeddings: looked up, scaled as the rows are, merged in their layout."""

import pytest
import torch
from torch import nn

from ince.errors import AdapterError
from ince.lora.layers.embedding import EmbeddingGeometry
from ince.lora.layers.kinds import geometry_of
from ince.lora.layers.spec import AdapterSpec

LORA = AdapterSpec(2, 2, 1.5)
DORA = AdapterSpec(2, 2, 1.5, variant="dora")


def test_shapes_and_names_of_the_file(make):
    layer = make(nn.Embedding(9, 4), LORA)
    assert {k: tuple(t.shape) for k, t in layer.tensors("0").items()} == {
        "lora_embedding_A": (2, 9),
        "lora_embedding_B": (4, 2),
    }
    names = {name for name, p in layer.named_parameters() if p.requires_grad}
    assert names == {"lora_embedding_A.0", "lora_embedding_B.0"}
    assert (layer.in_features, layer.out_features) == (9, 4)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 0)])
def test_ids_of_any_shape(make, dtype, shape):
    layer = make(nn.Embedding(9, 4), LORA)
    ids = torch.randint(0, 9, shape, dtype=dtype)
    a, b = layer.factor_parameters("0")
    expected = layer.base_layer(ids) + 1.5 * a.t()[ids.long()] @ b.t()
    torch.testing.assert_close(layer(ids), expected)


def test_a_row_that_is_not_looked_up_takes_no_gradient(make):
    layer = make(nn.Embedding(9, 4, padding_idx=2), DORA)
    layer(torch.tensor([[1, 2, 1]])).sum().backward()
    grad = layer.parameter("0", "lora_embedding_A").grad
    assert grad[:, 1].all()
    assert not grad[:, [0, 2, 3, 4, 5, 6, 7, 8]].any()


def test_a_gradient_by_frequency_stays_one(make):
    grads = []
    for by_frequency in (True, False):
        layer = make(nn.Embedding(9, 4, scale_grad_by_freq=by_frequency), LORA)
        layer(torch.tensor([1, 1, 2])).sum().backward()
        grads.append(layer.parameter("0", "lora_embedding_A").grad)
    torch.testing.assert_close(grads[0][:, 1] * 2, grads[1][:, 1])
    torch.testing.assert_close(grads[0][:, 2], grads[1][:, 2])


@pytest.mark.parametrize("spec", [LORA, DORA])
@pytest.mark.parametrize("scale", [3.0, 2, torch.tensor(3.0), torch.tensor([3.0])])
def test_a_scaled_embedding_scales_the_update(make, scaled, spec, scale):
    base = scaled(9, 4)
    base.embed_scale = scale
    layer = make(base, spec)
    ids = torch.arange(9)
    plain = nn.Embedding(9, 4)
    plain.weight = base.weight
    unscaled = make(plain, spec)
    torch.testing.assert_close(layer(ids), unscaled(ids) * scale)
    merged = layer.merged_module(torch.float32)
    assert isinstance(merged, scaled)
    torch.testing.assert_close(merged(ids), layer(ids))


def test_a_scale_in_16_bits_keeps_the_dtype(make, scaled):
    base = scaled(9, 4, dtype=torch.bfloat16)
    base.embed_scale = torch.tensor(3.0)
    assert make(base, LORA)(torch.arange(3)).dtype == torch.bfloat16


def test_there_is_no_bias(make):
    with pytest.raises(AdapterError, match="takes no lora_bias"):
        make(nn.Embedding(9, 4), AdapterSpec(2, 2, 1.0, bias=True))


def test_a_merged_embedding_keeps_its_padding(make):
    layer = make(nn.Embedding(9, 4, padding_idx=2), LORA)
    merged = layer.merged_module(torch.bfloat16)
    assert merged.padding_idx == 2
    assert merged.weight.shape == (9, 4)
    assert merged.weight.is_contiguous()


def test_the_weight_is_read_as_width_by_rows():
    base = nn.Embedding(9, 4)
    geometry = geometry_of(base)
    assert isinstance(geometry, EmbeddingGeometry)
    matrix = geometry.weight_matrix(torch.float32)
    assert torch.equal(matrix, base.weight.t())
    assert torch.equal(geometry.to_layout(matrix), base.weight)
    matrix.zero_()
    assert base.weight.any()
