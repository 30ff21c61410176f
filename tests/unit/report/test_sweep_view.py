import io
import json
import runpy
import shutil
import struct
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from ince.errors import CorruptFileError, InputError
from ince.report.search_picture import sweep_png
from ince.report.sweep_drawing import loss_panels, value_panels
from ince.report.sweep_page import render_sweep_page, write_sweep_page
from ince.report.sweep_terminal import plan_lines, sweep_summary, sweep_table
from ince.report.sweep_view import read_sweep, view_sweep

made_up = runpy.run_path(str(Path(__file__).with_name("made_up_sweep.py")))


@pytest.fixture
def folder(tmp_path):
    return made_up["write_sweep"](tmp_path / "turkish-sweep")


def printed(renderable, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


def test_who_came_farther_stands_higher_then_who_lost_less(folder):
    view = read_sweep(folder)
    assert [each.rung for each in view.candidates] == ["3/3", *["2/3"] * 2, *["1/3"] * 5, "0/3"]
    assert view.best.name == "r=64,lr=1e-3"
    assert [each.standing for each in view.candidates][-1] == "failed"
    within = [each.loss for each in view.candidates[3:8]]
    assert within == sorted(within)
    assert view.rungs == [("1/9", 9, 8), ("1/3", 3, 3), ("all", 1, 1)]
    assert (view.num_steps_trained, view.num_steps_of_all) == (200, 810)


def test_curves_are_by_step_or_by_share(tmp_path):
    view = read_sweep(made_up["write_sweep"](tmp_path / "a"))
    assert view.x_label == "step"
    assert view.best.held_out[-1][0] == 90
    state = made_up["content"]()
    state["candidates"][0]["num_steps"] = 45
    view = read_sweep(made_up["write_sweep"](tmp_path / "b", candidates=state["candidates"]))
    assert view.x_label == "% of its training"
    assert view.best.held_out[-1][0] == pytest.approx(100)


def test_values_are_compared_where_all_had_trained_alike(folder):
    ranks, rates = read_sweep(folder).by_value
    assert (ranks.key, list(ranks.values)) == ("lora.r", ["8", "16", "64"])
    assert (list(rates.values), rates.best) == (["2e-4", "1e-3", "1e-2"], 1)
    assert [len(losses) for losses in ranks.losses] == [3, 3, 2]


def test_the_table_fits_eighty_columns(folder):
    text = printed(sweep_summary(made_up["content"](), folder), width=80)
    table = text.partition("\n\nbest")[0]
    assert all(len(line) <= 80 for line in table.splitlines())
    assert "★ 1   64   1e-3    3/3      90     1.0173" in text
    assert "failed     r=64,lr=1e-2: loss is not finite at step 7" in text.replace("\n", " ")
    assert "25% of training all" in text


def test_names_and_values_are_text_and_not_markup(folder):
    state = made_up["content"](keys=["[red]k[/red]", "train.lr"], remarks=["[bold]x\x1b[31m"])
    state["candidates"][0]["values"]["[red]k[/red]"] = "[/nothing]\x1b[2J"
    text = printed(sweep_summary(state, folder), width=200)
    assert "[/nothing]␛" in text
    assert "[red]k[/red]" in text
    assert "\x1b" not in text


def test_an_unfinished_sweep_names_no_best(tmp_path):
    folder = made_up["write_sweep"](tmp_path / "x", status="interrupted", best=None)
    assert read_sweep(folder).best is None
    assert "not finished" in render_sweep_page(folder)
    assert "best.yaml" not in printed(sweep_summary(made_up["content"](best=None), folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"candidates": []},
        {"candidates": [7, {"name": "../../etc", "losses": "x", "values": 3}], "rungs": [1, {}]},
        {"keys": None, "rungs": None, "candidates": None, "best": 4, "remarks": 3},
    ],
)
def test_a_state_of_any_kind_is_shown_as_far_as_it_goes(tmp_path, changes):
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps(made_up["content"](**changes)), "utf-8")
    assert "</html>" in render_sweep_page(folder)
    assert printed(sweep_table(view_sweep(made_up["content"](**changes))))


def test_logs_that_are_gone_leave_the_table(folder):
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    view = read_sweep(folder)
    assert loss_panels(view) == []
    assert len(value_panels(view)) == 2
    assert "Candidates" in render_sweep_page(folder)


def test_no_sweep_and_a_damaged_one(tmp_path):
    with pytest.raises(InputError):
        read_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(CorruptFileError):
        read_sweep(tmp_path)


class Outline(HTMLParser):
    """What a page consists of."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.urls = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.urls += [
            v for k, v in attrs if k in ("src", "href") and not v.startswith(("#", "data:"))
        ]


def test_the_page_has_everything_and_asks_nobody(folder):
    page = write_sweep_page(folder)
    text = page.read_text("utf-8")
    outline = Outline(text)
    assert page == folder / "sweep.html"
    assert outline.urls == []
    assert "script" not in outline.tags
    assert outline.tags.count("svg") >= 8
    assert text.count("<tr class=") == 9
    assert "Best of 9: r 64, lr 1e-3." in text
    assert "Held-out loss 1.0173 after 90 steps." in text
    assert len(text) < 200_000


def test_hostile_names_stay_text(tmp_path):
    state = made_up["content"]()
    state["keys"] = ["<script>alert(1)</script>", "train.lr"]
    for each in state["candidates"]:
        each["values"]["<script>alert(1)</script>"] = '"><img src=x onerror=alert(1)>'
    state["candidates"][-1]["error"]["what"] = "</table><script>"
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps(state), "utf-8")
    outline = Outline(render_sweep_page(folder))
    assert "script" not in outline.tags
    assert "img" not in outline.tags


def test_a_candidate_that_blew_up_does_not_flatten_the_others(folder):
    log = folder / "r=8,lr=1e-2" / "log.jsonl"
    with log.open("a") as stream:
        stream.write('{"step": 10, "eval_loss": 900.0}\n')
    (panel, _) = loss_panels(read_sweep(folder))
    assert panel.y[1] < 10
    assert panel.note == "1 of the curves leave the drawing above"
    assert [curve.standing for curve in panel.curves][-1] == "best"


@pytest.mark.parametrize("with_logs", [True, False])
def test_the_picture(folder, with_logs):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    view = read_sweep(folder) if with_logs else view_sweep(made_up["content"]())
    picture = sweep_png(view)
    assert picture.startswith(b"\x89PNG")
    assert struct.unpack(">II", picture[16:24]) == (1800, 750)


def test_a_plan_in_words():
    rungs = [
        {"num_candidates": 40, "steps": [10, 10]},
        {"num_candidates": 13, "steps": [30, 60]},
    ]
    text = "\n".join(
        line.plain
        for line in plan_lines([f"c{n}" for n in range(40)], rungs, cost=2.5, remarks=["mind"])
    )
    for words in (
        "and 10 more",
        "40 trained to step 10\n",
        "13 trained to step 30 to 60",
        "2.5 whole",
    ):
        assert words in text
    assert "remark     mind" in text
