"""Steps out of the ordinary stand on the page: marked on the curve, and with their rows."""

import json

from ince.report import render_report
from ince.report.events import event_of, event_table
from ince.report.run_files import read_run_files

SPIKE = {
    "step": 40,
    "event": "spike",
    "spike_loss": 9.25,
    "limit": 3.5,
    "sources": ["rows.jsonl, line 88", "rows.jsonl, line 7"],
}
SKIPPED = {
    "step": 41,
    "event": "skipped",
    "what": "loss nan, gradient norm nan",
    "sources": ["rows.jsonl, line 3"],
}
CUT = {
    "step": 50,
    "event": "micro-batch cut",
    "what": "out of memory",
    "micro_batch_tokens": 2048,
}


def add(folder, *lines):
    with (folder / "log.jsonl").open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)
    return folder


def test_events_are_read_in_their_order(run_folder):
    run = read_run_files(add(run_folder(num_steps=60), SPIKE, SKIPPED, CUT, {"step": 51}))
    assert [(e.step, e.kind, e.value) for e in run.events] == [
        (40, "spike", 9.25),
        (41, "skipped", None),
        (50, "micro-batch cut", None),
    ]
    assert run.events[0].what == "loss 9.25, above 3.5"
    assert run.events[2].what == "out of memory; forwards of at most 2,048 tokens from here on"
    assert run.notes == []


def test_the_page_marks_them_and_names_their_rows(run_folder):
    page = render_report(add(run_folder(num_steps=60), SPIKE, SKIPPED, CUT))
    assert "Out of the ordinary: 1 loss spike, 1 skipped step, 1 smaller micro-batch" in page
    assert page.count('<circle class="spike"') == 2  # in the legend and on the curve
    assert page.count('<line class="skipped"') == 2
    assert '<circle class="spike" cx="66.1%" cy="0%" r="4.5"/>' in page  # above the drawing
    assert "rows.jsonl, line 88, rows.jsonl, line 7" in page
    assert "spike: 1. skipped step: 1." in page  # for whoever cannot see the drawing


def test_a_run_without_events_says_nothing_of_them(run_folder):
    page = render_report(run_folder(num_steps=60))
    assert "Out of the ordinary" not in page
    assert 'class="spike"' not in page


def test_of_many_some_are_shown_and_all_are_counted(run_folder):
    lines = [{"step": 1 + i % 60, "event": "skipped", "what": "loss inf"} for i in range(2_300)]
    run = read_run_files(add(run_folder(num_steps=60), *lines))
    table = event_table(run.events, run.num_more_events)
    assert len(table.rows) == 20
    assert table.num_left_out == 2_280
    assert table.counts == "2,000 skipped steps, 300 more in log.jsonl"
    assert render_report(run.folder).count('<line class="skipped"') <= 201


def test_a_run_of_nothing_but_skipped_steps_has_its_table(run_folder):
    folder = run_folder(without=("log.jsonl",))
    page = render_report(add(folder, SKIPPED))
    assert "loss nan, gradient norm nan" in page


def test_hostile_events_are_shown_or_passed_over():
    assert event_of(1, {"event": 7}) is None
    assert event_of(1, {"event": ""}) is None
    found = event_of(
        1,
        {
            "event": "spike",
            "spike_loss": "high",
            "limit": None,
            "sources": {"a": 1},
            "micro_batch_tokens": [],
        },
    )
    assert (found.what, found.sources, found.value) == ("", (), None)
    found = event_of(1, {"event": "x" * 500, "what": "y" * 5_000, "sources": [3, "a\u202eb"] * 50})
    assert len(found.kind) < 100
    assert len(found.what) < 300
    assert len(found.sources) == 4
    assert "\u202e" not in found.sources[0]
