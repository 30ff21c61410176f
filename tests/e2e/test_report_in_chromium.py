"""The report in a real browser: it shows, it fits, it follows the color scheme, it asks nobody."""

import html
import json
import runpy
import struct
import subprocess
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ince.report import write_report
from ince.report.sweep_page import render_sweep_page

MADE_UP_RUN = Path(__file__).parents[1] / "unit" / "report" / "made_up_run.py"
MADE_UP_SWEEP = MADE_UP_RUN.with_name("made_up_sweep.py")
# A page around the report, because the report itself allows no script: it shows the report at
# several widths and writes down what it finds in each.
PROBE = """<!doctype html><pre id="found">not measured</pre>
<script>
function look(window) {
  const page = window.document, root = page.documentElement;
  const wide = [...page.querySelectorAll("body *")].filter(element =>
    element.getBoundingClientRect().right > root.clientWidth + 1
    && !element.closest(".scroll, .skip, .unseen, thead"));
  return {
    width: root.scrollWidth,
    room: root.clientWidth,
    height: root.scrollHeight,
    wide: wide.slice(0, 5).map(element => element.outerHTML.slice(0, 120)),
    requests: window.performance.getEntriesByType("resource").map(r => r.name),
    headline: page.querySelector("h1").innerText,
    rows: page.querySelectorAll(".scores tbody tr[role=row] td.verdict").length,
    samples: page.querySelectorAll(".samples li").length,
    lines: [...page.querySelectorAll(".plot .box path")].filter(p => p.getTotalLength()).length,
    scripts: page.scripts.length,
    ran: window.ran === true,
  };
}
const found = [], widths = WIDTHS;
for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.onload = () => {
    found.push(look(frame.contentWindow));
    if (found.length === widths.length)
      document.getElementById("found").textContent = JSON.stringify(found);
  };
  frame.width = width;
  frame.height = 900;
  frame.src = "report.html";
  document.body.append(frame);
}
</script>"""


@pytest.fixture(scope="session")
def made_up():
    return runpy.run_path(str(MADE_UP_RUN))


@pytest.fixture
def run_browser(browser, tmp_path):
    def run(path, *flags):
        done = subprocess.run(
            [*browser, f"--user-data-dir={tmp_path / 'profile'}", *flags, path.as_uri()],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def measure(run_browser):
    """What a browser finds in a report shown at some widths."""

    def measured(report, *widths):
        probe = report.with_name("probe.html")
        probe.write_text(PROBE.replace("WIDTHS", str(list(widths))), encoding="utf-8")
        dom = run_browser(probe, "--allow-file-access-from-files", "--dump-dom")
        found = dom.partition('<pre id="found">')[2].partition("</pre>")[0]
        return json.loads(html.unescape(found))

    return measured


def png_size_and_pixels(path):
    """Width, height, the color of the first pixel, and the share of bytes that are not flat."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    at, packed = 8, b""
    while at < len(data):
        (size,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        packed += data[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += 12 + size
    filtered = zlib.decompress(packed)
    # Rows hold differences from their neighbors, so that an empty page is zero nearly everywhere.
    return (width, height), tuple(filtered[1:4]), 1 - filtered.count(0) / len(filtered)


def test_everything_shows_and_fits(made_up, measure, tmp_path):
    report = write_report(made_up["write_run"](tmp_path / "turkish"))
    for found in measure(report, 340, 420, 800, 1280):
        assert found["width"] <= found["room"], found["wide"]
        assert found["wide"] == []
        assert found["requests"] == []
        assert found["headline"].startswith("Inflection exact match rose from 0.0% to 66.4%.")
        assert (found["rows"], found["samples"], found["lines"]) == (5, 20, 9)
        assert found["height"] > 2_000


def test_the_page_of_a_sweep_shows_and_fits(measure, tmp_path):
    folder = runpy.run_path(str(MADE_UP_SWEEP))["write_sweep"](tmp_path / "sweep")
    page = folder / "report.html"
    page.write_text(render_sweep_page(folder), encoding="utf-8")
    for found in measure(page, 340, 800, 1280):
        assert found["width"] <= found["room"], found["wide"]
        assert found["wide"] == []
        assert found["requests"] == []
        assert found["headline"] == "Best of 9: r 64, lr 1e-3."
        # Three candidates came past the first rung, and eight have logs; each key has a line.
        assert found["lines"] == 3 + 8 + 2
        assert found["scripts"] == 0


@pytest.mark.parametrize(("scheme", "number"), [("dark", 0), ("light", 1)])
def test_it_follows_the_color_scheme(made_up, run_browser, tmp_path, scheme, number):
    report = write_report(made_up["write_run"](tmp_path / "turkish"))
    picture = tmp_path / "picture.png"
    run_browser(
        report,
        f"--blink-settings=preferredColorScheme={number}",
        "--window-size=1280,1400",
        f"--screenshot={picture}",
    )
    size, color, busy = png_size_and_pixels(picture)
    assert size == (1280, 1400)
    assert max(color) < 60 if scheme == "dark" else min(color) > 220
    assert busy > 0.01


def test_hostile_data_fits_runs_nothing_and_asks_nobody(made_up, measure, tmp_path):
    asked = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = f"http://127.0.0.1:{server.server_port}/leak"
        attack = (
            f'"></title></style></script><script>window.ran=true;fetch("{there}")</script>'
            f'<img src="{there}" onerror="window.ran=true">\u202e\u0627\u0644' + "W" * 3_000
        )

        def change(record):
            record["status"] = "failed"
            record["error"] = {"type": attack, "what": attack, attack: attack}
            record["recipe"] = {attack: {attack: attack}, "model": attack}
            record["data"]["train"]["dropped"] = {attack: 3}
            record["phases"].append({"name": attack, "seconds": 9})
            record["proofs"].append({"name": attack, "unit": attack, "value": 1, "holds": False})
            record["versions"][attack] = attack
            for metric in record["evaluation"]["metrics"]:
                metric["label"] = metric["group"] = metric["unit"] = attack

        folder = made_up["write_run"](tmp_path / "turkish", change=change)
        row = dict.fromkeys(("task", "prompt", "expected", "base", "tuned"), attack)
        (folder / "samples.jsonl").write_text(made_up["json_lines"]([row] * 3), encoding="utf-8")
        everywhere = measure(write_report(folder), 340, 1280)
        server.shutdown()
    assert asked == []
    for found in everywhere:
        assert found["requests"] == []
        assert found["scripts"] == 0
        assert not found["ran"]
        assert found["width"] <= found["room"], found["wide"]
        assert found["samples"] == 3
