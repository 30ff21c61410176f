"""Tensors that come in runs are those that come whole, to the bit."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ince.errors import QuantError
from ince.models import streaming
from ince.models.layout import Layout, Piece, Target
from ince.models.source import Entry
from ince.models.streaming import Finished, stream
from ince.quant import NF4Config
from ince.quant.packed_module import packed_parts

CPU = torch.device("cpu")
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class InMemory:
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.folder = Path("nowhere")
        self.tensors = dict(tensors)
        self.entries = {
            name: Entry(tuple(t.shape), NAMES[t.dtype], t.numel() * t.itemsize, Path("file"))
            for name, t in tensors.items()
        }

    def order(self) -> list[str]:
        return list(self.tensors)

    def read(self, name: str) -> Tensor:
        return self.tensors[name].clone()


def layout_of(*targets: Target) -> Layout:
    return Layout({target.name: target for target in targets})


def run(tensors: Mapping[str, Tensor], *targets: Target, **options: object) -> dict[str, Finished]:
    settings: dict[str, object] = {"packed": (), "config": None, "device": CPU, **options}
    found = stream(InMemory(tensors), layout_of(*targets), **settings)  # pyright: ignore[reportArgumentType]
    return {each.target.name: each for each in found}


@pytest.fixture(autouse=True)
def _small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_RUN", 4096)
    monkeypatch.setattr(streaming, "_GIVE_BACK_EVERY", 10_000)


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("blocksize", [32, 64, 4096])
@pytest.mark.parametrize("shape", [(64, 64), (3, 5), (131, 97), (4096,), (5, 33, 31)])
def test_packed_in_runs_as_packed_whole(
    shape: tuple[int, ...], blocksize: int, double_quant: bool
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape).bfloat16()
    config = NF4Config(blocksize=blocksize, double_quant=double_quant)
    target = Target("w", shape, torch.bfloat16, (Piece("stored", ()),))
    found = run({"stored": weight}, target, packed={"w"}, config=config)["w"]
    assert found.tensor is None
    assert found.config == config
    expected = packed_parts(weight, config, "w")
    assert found.parts.keys() == expected.keys()
    assert all(torch.equal(part, expected[name]) for name, part in found.parts.items())


@pytest.mark.parametrize("num_rows", [32, 7])  # 7 rows of 96: no block ends with a piece
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("packs", [True, False])
def test_pieces_in_any_order(packs: bool, axis: int, num_rows: int) -> None:
    torch.manual_seed(0)
    whole = torch.randn(4, 2 * num_rows, 96)
    tensors: dict[str, Tensor] = {}
    pieces: list[Piece] = []
    for number, part in enumerate(whole.chunk(2, dim=axis)):
        region = [slice(None)] * axis + [slice(number * part.shape[axis], None)]
        if number == 0:
            region[axis] = slice(0, part.shape[axis])
        pieces.append(Piece(str(number), tuple(region)))
        tensors = {str(number): part.contiguous(), **tensors}  # the last comes first
    target = Target("w", tuple(whole.shape), torch.bfloat16, tuple(pieces))
    config = NF4Config() if packs else None
    found = run(tensors, target, packed={"w"}, config=config)["w"]
    if packs:
        expected = packed_parts(whole.bfloat16(), NF4Config(), "w")
        assert all(torch.equal(part, expected[name]) for name, part in found.parts.items())
    else:
        assert found.tensor is not None
        assert torch.equal(found.tensor, whole.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_kept_tensors_take_the_type_of_the_model(dtype: torch.dtype) -> None:
    weight = torch.randn(100, 99)
    target = Target("w", (100, 99), dtype, (Piece("w", ()),))
    found = run({"w": weight}, target)["w"].tensor
    assert found is not None
    assert found.dtype == dtype
    assert torch.equal(found, weight.to(dtype))
    assert found.untyped_storage().nbytes() == found.numel() * dtype.itemsize


def test_order_of_the_disk_unused_and_skipped_tensors() -> None:
    tensors = {name: torch.ones(10) for name in ("c", "unused", "a", "b")}
    targets = [Target(name, (10,), torch.float32, (Piece(name, ()),)) for name in "abc"]
    told: list[tuple[str, int, int]] = []
    found = run(tensors, *targets, skip={"a"}, progress=lambda *step: told.append(step))
    assert list(found) == ["c", "b"]
    assert told[-1] == ("loading", 160, 160)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_all_weights_that_are_not_finite_are_counted() -> None:
    weight = torch.randn(100, 100)
    weight[0, 0], weight[50, 3], weight[99, 99] = torch.nan, torch.inf, -torch.inf
    target = Target("layer.weight", (100, 100), torch.float32, (Piece("w", ()),))
    for packed in ({"layer.weight"}, set[str]()):
        with pytest.raises(QuantError, match="3 of 10000 weights") as caught:
            run({"w": weight}, target, packed=packed, config=NF4Config())
        assert caught.value.where == "layer.weight"
        assert caught.value.got == "1 NaN, 2 infinite"
    assert run({"w": weight}, target)["layer.weight"].tensor is not None
