import pytest
import torch

from ince.ops import QUANT_TYPES, code_of
from ince.ops.reference.nearest import nearest_code, nearest_value


def near(midpoints):
    """The midpoints, and the three floats on either side of each."""
    found = [midpoints]
    for end in (-2.0, 2.0):
        step = midpoints
        for _ in range(3):
            step = torch.nextafter(step, torch.full_like(step, end))
            found.append(step)
    return torch.cat(found)


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_the_nearest_value_is_found_and_the_lower_of_two(quant_type):
    values = code_of(quant_type).unique()
    midpoints = (values[:-1] + values[1:]) / 2
    given = torch.cat([near(midpoints), torch.linspace(-1, 1, 20_001), torch.tensor([-0.0, 1e-38])])
    # In float64 differences are exact enough to tell neighbors in float32 apart.
    distance = (given.double()[:, None] - values.double()).abs()
    found = nearest_value(given, quant_type)
    assert found.dtype == torch.float32
    # A midpoint in float32 may lie a rounding off the true one.
    assert bool(((found.double() - given).abs() <= distance.amin(1) + 1e-7).all())
    assert torch.equal(nearest_value(midpoints, quant_type), values[:-1])
    above = torch.nextafter(midpoints, torch.ones(1))
    assert torch.equal(nearest_value(above, quant_type), values[1:])


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_codes_stand_for_the_values(quant_type):
    given = torch.linspace(-1, 1, 4001)
    codes = nearest_code(given, quant_type)
    assert codes.dtype == torch.uint8
    expanded = code_of(quant_type)[codes.long()]
    assert torch.equal(expanded, nearest_value(given, quant_type))


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_what_lies_beyond_takes_the_outermost(quant_type):
    beyond = torch.tensor([[-2.5, -1.01], [1.01, 2.5]])
    assert nearest_value(beyond, quant_type).tolist() == [[-1, -1], [1, 1]]
