from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

from ince.formats.writer import PlannedTensor
from ince.models.layout import Layout, Piece, Target
from ince.models.packed_shards import finishing_order, packed_parts_of, spread
from ince.models.source import Entry
from ince.quant import NF4Config
from ince.quant.packed_module import packed_parts


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("shape", [(7,), (64, 64), (3, 100, 101), (300, 600)])
def test_parts_are_those_of_packing(shape: tuple[int, ...], double_quant: bool) -> None:
    config = NF4Config(double_quant=double_quant, blocksize=32)
    expected = packed_parts(torch.randn(shape), config, "w")
    found = packed_parts_of(shape, config)
    assert {n: (p.shape, p.dtype) for n, p in found.items()} == {
        n: (tuple(t.shape), t.dtype) for n, t in expected.items()
    }


def test_order_is_that_of_the_last_pieces() -> None:
    class Source:
        folder = Path()
        entries: Mapping[str, Entry] = MappingProxyType({})

        def order(self) -> list[str]:
            return ["b1", "a", "b2", "c"]

        def read(self, name: str) -> torch.Tensor:
            raise AssertionError(name)

    def target(name: str, *stored: str) -> Target:
        return Target(name, (1,), torch.float32, tuple(Piece(each, ()) for each in stored))

    targets = [target("C", "c"), target("B", "b1", "b2"), target("A", "a")]
    layout = Layout({each.name: each for each in targets})
    assert [each.name for each in finishing_order(Source(), layout)] == ["A", "B", "C"]


def test_files_are_filled_and_large_tensors_have_their_own() -> None:
    sizes = {"a": 40, "b": 60, "c": 1, "large": 500, "d": 99, "e": 1}
    stored = {n: (PlannedTensor(n, (size,), torch.uint8),) for n, size in sizes.items()}
    shards = spread(stored, 100)
    assert [list(shard.targets) for shard in shards] == [["a", "b"], ["c"], ["large"], ["d", "e"]]
    assert [shard.num_bytes for shard in shards] == [100, 1, 500, 100]
    assert spread({}, 100) == []
