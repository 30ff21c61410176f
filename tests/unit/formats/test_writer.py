"""The streaming writer writes what the safetensors library reads, and is read as it wrote."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ince.formats.writer import PlannedTensor, write_safetensors

TENSORS = {
    "weight": torch.randn(3, 5).bfloat16(),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "transposed": torch.arange(6, dtype=torch.int64).view(2, 3).t(),
    'a "quoted" näme': torch.tensor([True, False]),
    "half": torch.tensor([1.5], dtype=torch.float16),
    "bytes": torch.tensor([0, 255], dtype=torch.uint8),
}


def plan(tensors):
    return [PlannedTensor(name, tuple(t.shape), t.dtype) for name, t in tensors.items()]


def test_what_is_written_is_read_by_the_library(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, plan(TENSORS), (t for t in TENSORS.values()))
    read = load_file(path)
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_tensors_are_drawn_one_at_a_time(tmp_path):
    alive = []

    def make():
        for i in range(3):
            tensor = torch.full((4,), float(i))
            alive.append(tensor)
            yield tensor

    entries = [PlannedTensor(str(i), (4,), torch.float32) for i in range(3)]
    write_safetensors(tmp_path / "x", entries, make())
    assert len(alive) == 3


@pytest.mark.parametrize(
    "tensors",
    [
        [torch.zeros(2, 2)],
        [torch.zeros(2, 3).bfloat16()],
        [torch.zeros(2, 3)] * 2,
        [],
    ],
)
def test_what_was_not_planned_is_refused(tmp_path, tensors):
    with pytest.raises(ValueError, match="planned|zip"):
        write_safetensors(
            tmp_path / "x", [PlannedTensor("a", (2, 3), torch.float32)], iter(tensors)
        )
