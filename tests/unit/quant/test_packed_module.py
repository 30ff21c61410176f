"""What modules over packed weights have in common."""

import pytest
import torch

from ince import NF4Config
from ince.errors import QuantError
from ince.quant.packed_module import PARTS, PackedModule, packed_parts


def module_of(weight, config):
    module = PackedModule(weight.numel(), config, "meta")
    for name, part in packed_parts(weight, config, "w").items():
        setattr(module, name, part)
    return module


@pytest.mark.parametrize("double_quant", [True, False])
def test_the_buffers_have_the_shapes_of_the_parts(double_quant):
    config = NF4Config(double_quant=double_quant)
    made = PackedModule(64 * 300 + 1, config, None)
    filled = module_of(torch.randn(64 * 300 + 1), config)
    assert list(made.parts()) == list(PARTS if double_quant else PARTS[:2])
    for name, part in made.parts().items():
        assert part.shape == filled.parts()[name].shape
        assert part.dtype == filled.parts()[name].dtype
    num_bytes = 32 * 300 + 1 + (301 + 8 + 4 if double_quant else 4 * 301)
    assert made.weight_bytes == filled.weight_bytes == num_bytes


def test_a_cast_moves_no_bit():
    module = module_of(torch.randn(1000), NF4Config())
    before = {name: part.clone() for name, part in module.parts().items()}
    module.to(torch.float16)
    assert all(torch.equal(part, before[name]) for name, part in module.parts().items())
    assert all(part.dtype == before[name].dtype for name, part in module.parts().items())


def test_a_state_dict_is_loaded_strictly_and_never_converted():
    module = module_of(torch.randn(1000), NF4Config())
    other = PackedModule(1000, NF4Config(), None)
    other.load_state_dict(module.state_dict(), strict=True)
    assert torch.equal(other.packed, module.packed)
    floats = {name: part.float() for name, part in module.state_dict().items()}
    with pytest.raises(QuantError, match="wrong type"):
        other.load_state_dict(floats)
    damaged = dict(module.state_dict(), nested_offset=torch.tensor(torch.inf))
    with pytest.raises(QuantError, match="not finite"):
        other.load_state_dict(damaged)


def test_a_weight_that_cannot_be_packed_is_named():
    with pytest.raises(QuantError) as caught:
        packed_parts(torch.tensor([1.0, torch.nan]), NF4Config(), "model.q.weight")
    assert caught.value.where == "model.q.weight"
