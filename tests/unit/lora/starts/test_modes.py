"""A mode for a moment."""

import pytest
from torch import nn

from ince.lora.starts.modes import in_mode


@pytest.mark.parametrize("training", [True, False])
def test_every_module_gets_its_mode_back(training):
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2))
    model[0].eval()

    def inside():
        with in_mode(model, training=training):
            assert {module.training for module in model.modules()} == {training}
            raise KeyError

    with pytest.raises(KeyError):
        inside()
    assert [module.training for module in model.modules()] == [True, False, True]
