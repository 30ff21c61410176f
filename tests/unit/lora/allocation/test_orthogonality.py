import pytest
import torch

from ince.errors import AdapterError
from ince.lora.allocation.orthogonality import orthogonality
from ince.lora.placement.inject import lora_layers
from ince.lora.variants import ADALORA


def test_it_is_the_mean_distance_of_all_factors(make):
    model, _ = make()
    distances = []
    for _, layer in lora_layers(model):
        a, _, b = ADALORA.parts(layer, "default")
        distances += [torch.dist(rows @ rows.t(), torch.eye(4)) for rows in (a, b.t())]
    torch.testing.assert_close(orthogonality(model), torch.stack(distances).mean())


def test_its_gradient_leads_to_orthogonal_factors(make):
    model, _ = make(init_r=3, target_modules=["first"])
    ((_, layer),) = lora_layers(model)
    a, e, b = ADALORA.parts(layer, "default")
    optimizer = torch.optim.Adam([a, b], lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        orthogonality(model).backward()
        optimizer.step()
    assert orthogonality(model) < 0.1
    assert e.grad is None


def test_no_rank_is_no_distance(make):
    model, _ = make(rank_pattern={"first.lora_E": (False,) * 4, "second.lora_E": (False,) * 4})
    value = orthogonality(model)
    value.backward()
    assert value == 0


def test_an_unknown_adapter_is_an_error(make):
    model, _ = make()
    with pytest.raises(AdapterError, match="no AdaLoRA adapter 'other'"):
        orthogonality(model, "other")
