from pathlib import Path

import pytest
import torch

from ince.errors import AdapterError
from ince.lora.insight.layer_update import LayerUpdate, check_rank


def test_scales_go_into_the_factors():
    a, b = torch.randn(3, 5), torch.randn(4, 3)
    e, o = torch.randn(3), torch.randn(4)
    update = LayerUpdate("q", "q", "linear", a, b, 2.0, 27, rank_scale=e, output_scale=o)
    expected = 2.0 * torch.diag(o) @ b @ torch.diag(e) @ a
    torch.testing.assert_close(update.factors().delta(), expected)
    assert (update.shape, update.rank) == ((4, 5), 3)


def test_factors_without_scales_are_no_copies():
    a, b = torch.randn(3, 5), torch.randn(4, 3)
    factors = LayerUpdate("q", "q", "linear", a, b, 2.0, 27).factors()
    assert factors.a_RD is a
    assert factors.b_OR is b


def test_another_rank_than_the_config_says():
    check_rank("q", 4, 4, Path("f"))
    with pytest.raises(AdapterError, match="another rank than its config"):
        check_rank("q", 4, 8, Path("f"))
