import json
import math
import re
import time
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from ince.report import render_report, write_report

VOID = {"meta", "link", "br", "hr", "img", "input", "base"}
HOSTILE = (
    "</script></style></svg><img src=x onerror=alert(1)>\"'{{ 7*7 }}\u202e\x00\x1b[31m\ud800&amp;"
)


class Outline(HTMLParser):
    """Every tag with its attributes; fails when tags do not nest."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def outline(page):
    found = Outline()
    found.feed(page)
    found.close()
    assert not found.open
    return found


def words(page):
    return " ".join("".join(outline(page).words).split())


def test_a_whole_run_is_told(run_folder):
    page = render_report(run_folder())
    text = words(page)
    for expected in (
        "Inflection exact match rose from 0.0% to 66.4%. Diacritics words restored rose",
        "English lost 1.2%: bits per byte 1.281 before, 1.296 after.",
        "✓ Done",
        "9 min 37 s",
        "Merged model equals adapter",
        "▲ better",
        "▼ worse",
        "What English lost",
        "20 of 20 written, taken in turn, not chosen.",
        "inflection: 0 right before, 8 after, of 10.",
        "denizlerden",
        "longer than 1024 tokens",
        "4,884,480, 3.50% of all",
        "AMD EPYC 9R14",
        "type: nf4, blocksize: 64, double_quant: true",
        "step 320",
    ):
        assert expected in text, expected


def test_it_is_one_file_without_scripts_or_requests(run_folder):
    found = outline(render_report(run_folder()))
    names = {tag for tag, _ in found.tags}
    assert not names & {"script", "iframe", "object", "embed", "img", "form"}
    for tag, attributes in found.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src"):
                assert value.startswith(("#", "data:")), value
    styles = "".join(found.words)
    assert "url(" not in styles
    assert "@import" not in styles


def test_it_can_be_read_by_ear_and_keyboard(run_folder):
    found = outline(render_report(run_folder()))
    ids = [a["id"] for _, a in found.tags if "id" in a]
    assert len(ids) == len(set(ids))
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    for tag, attributes in found.tags:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
        if tag == "svg" and attributes.get("role") == "img":
            assert "by step" in attributes["aria-label"]
    assert found.tags[0] == ("html", {"lang": "en"})


def test_it_is_small(run_folder):
    assert len(render_report(run_folder(num_steps=1_000)).encode()) < 120_000


def test_a_hundred_thousand_steps_are_thinned_quickly(run_folder):
    folder = run_folder()
    lines = (f'{{"step": {i}, "loss": {1 + i % 7}, "lr": 1e-4}}\n' for i in range(100_000))
    (folder / "log.jsonl").write_text("".join(lines))
    start = time.monotonic()
    page = render_report(folder)
    assert time.monotonic() - start < 20
    assert len(page.encode()) < 200_000


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_an_unfinished_run_says_so(run_folder, status):
    def change(record):
        record["status"] = status
        record["evaluation"] = None
        record["seconds"] = 0.0
        if status == "failed":
            record["error"] = {
                "type": "TrainingError",
                "what": "the loss is not a finite number",
                "where": "step 57",
                "do": "lower train.lr",
            }

    folder = run_folder(change=change, without=("eval.json", "samples.jsonl"))
    text = words(render_report(folder))
    badge, headline = {
        "running": ("Not finished", "The run has not finished."),
        "interrupted": ("Interrupted", "The run was interrupted."),
        "failed": ("Failed", "The run failed."),
    }[status]
    assert badge in text
    assert "whole run" not in text
    assert headline in text
    assert "Training loss fell from 3.910 to 0.410." in text
    assert "Nothing was measured against the base model." in text
    assert "samples.jsonl: not written." in text
    if status == "failed":
        assert "the loss is not a finite number" in text
        assert "lower train.lr" in text


def test_the_beginning_of_a_run_is_enough(tmp_path):
    (tmp_path / "run.json").write_text('{"status": "running", "phases": []}')
    text = words(render_report(tmp_path))
    assert "Nothing was measured" in text
    (tmp_path / "run.json").unlink()
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 4.5}\n')
    assert "Status unknown" in words(render_report(tmp_path))


def hostile(value):
    """The same shape with every text, key and number replaced by something unkind."""
    if isinstance(value, dict):
        return {**{key: hostile(item) for key, item in value.items()}, HOSTILE: HOSTILE}
    if isinstance(value, list):
        return [*(hostile(item) for item in value), None, 3, HOSTILE, [[]]]
    if isinstance(value, str):
        return value + HOSTILE
    return value


def test_hostile_texts_stay_texts(run_folder, made_up):
    folder = run_folder(num_steps=20)
    (folder / "run.json").write_text(json.dumps(hostile(made_up.record())))
    (folder / "eval.json").write_text(json.dumps(hostile(made_up.evaluation())))
    for name, rows in (("samples", made_up.samples()), ("log", made_up.log_lines(20))):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(hostile(row)) + "\n" for row in rows)
        )
    write_report(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    found = outline(page)
    assert not {"script", "img"} & {tag for tag, _ in found.tags}
    assert not [a for _, attributes in found.tags for a in attributes if a.startswith("on")]
    assert not set(page) & set("\u202e\x00\x1b")
    assert "49" not in "".join(w for w in found.words if "7*7" in w)
    assert page.count("</style>") == 1


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        "text",
        3,
        math.inf,
        True,
        [],
        {},
        [1, "x", None],
        {"a": {"b": [1]}},
        pytest.param(10**400, id="large"),
    ],
)
def test_sections_of_another_form_are_left_out(run_folder, made_up, wrong):
    folder = run_folder(num_steps=5)
    record = made_up.record()
    for key in record:
        (folder / "run.json").write_text(json.dumps({**record, key: wrong}))
        outline(render_report(folder))
    for section in ("base", "adapter", "training", "hardware", "data", "recipe", "evaluation"):
        changed = {**record, section: dict.fromkeys(record[section], wrong)}
        (folder / "run.json").write_text(json.dumps(changed))
        outline(render_report(folder))
    metric = made_up.evaluation()["metrics"][0]
    changed = {"confidence": wrong, "metrics": [{**metric, key: wrong} for key in metric]}
    (folder / "eval.json").write_text(json.dumps(changed))
    outline(render_report(folder))


def test_a_megabyte_of_text_is_cut(run_folder):
    folder = run_folder()
    big = "wide " * 200_000
    row = dict.fromkeys(("task", "prompt", "expected", "base", "tuned"), big)
    (folder / "samples.jsonl").write_text(json.dumps(row) + "\n")
    page = render_report(folder)
    assert len(page) < 200_000
    assert "characters more)" in page


def test_an_unknown_metric_has_its_row(run_folder, made_up):
    folder = run_folder()
    metrics = [{"name": "novelty", "base": 1.5, "tuned": 2.5, "group": "new", "extra": {}}]
    (folder / "eval.json").write_text(json.dumps({"metrics": metrics}))
    text = words(render_report(folder))
    assert "novelty" in text
    assert "+1.000" in text
    assert "no interval" in text


def test_the_report_is_written_again_over_an_older_one(run_folder):
    folder = run_folder()
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    assert sorted(path.name for path in folder.iterdir()) == [
        "eval.json",
        "log.jsonl",
        "report.html",
        "run.json",
        "samples.jsonl",
    ]
