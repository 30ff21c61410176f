"""Which type is quick where."""

import pytest
import torch

from ince.ops import native, native_dtype


def test_a_processor_that_emulates_bfloat16_computes_in_float32(monkeypatch):
    monkeypatch.setattr(native, "_multiplies_bfloat16", lambda: False)
    assert native_dtype("cpu") == torch.float32
    monkeypatch.setattr(native, "_multiplies_bfloat16", lambda: True)
    assert native_dtype("cpu") == torch.bfloat16


@pytest.mark.parametrize("device", ["cuda", torch.device("cuda", 1), "mps"])
def test_other_devices_compute_in_16_bits(device):
    assert native_dtype(device) == torch.bfloat16
