import io
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ince.lora.insight import compare_adapters
from ince.report.adapter_terminal import adapter_lines, comparison_lines, side_by_side

make_insight = runpy.run_path(str(Path(__file__).with_name("adapters.py")))["make_insight"]


def printed(lines, width=80):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    for line in lines:
        console.print(line)
    return console.file.getvalue()


@pytest.fixture
def first(tmp_path):
    return make_insight(tmp_path / "first", base_model_name_or_path="[red]owner/base")


def test_the_short_form_fits_80_columns(first):
    text = printed(adapter_lines(first))
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines()[1:])
    for word in ("LoRA", "[red]owner/base", "q_proj", "all", "spread most", "‖ΔW‖"):
        assert word in text
    assert "model.layers.1.mlp.down_proj " not in text.split("changes")[0]


def test_every_layer(first):
    text = printed(adapter_lines(first, every_layer=True), width=160)
    for layer in first.layers:
        assert text.count(layer.name) >= 1
    assert "10 x 12" in text


def test_what_is_to_be_known_is_said(first):
    told = replace(
        first,
        notes=("[bold]note",),
        uncompared={"stored as U8": [f"layer {n}" for n in range(9)]},
        unknown=("stray",),
    )
    text = printed(adapter_lines(told), width=200)
    assert "[bold]note" in text
    assert "9 weights, stored as U8: layer 0, layer 1, layer 2, layer 3, layer 4 and 4 more" in text
    assert "1 tensors: stray" in text


def test_two_adapters(first, tmp_path):
    second = make_insight(tmp_path / "second", seed=1, r=6, extra=["lm_head"])
    comparison = compare_adapters(first, second)
    text = printed([side_by_side(first, second), *comparison_lines(comparison)], width=120)
    assert "their bases differ: [red]owner/base and one that is not named" in text
    assert "only second" in text
    assert "random all" in text
    every = printed(comparison_lines(comparison, every_layer=True), width=160)
    assert all(pair.name in every for pair in comparison.pairs)
