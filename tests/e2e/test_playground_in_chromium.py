"""The playground in a real browser, over the real routes and an engine with answers of its own."""

import json
import runpy
import time
from pathlib import Path

import pytest

from ince.serve.http import Caller, HttpSettings, create_app

SERVED = Path(__file__).parents[1] / "unit" / "serve" / "http" / "conftest.py"
TURKISH, SHORT = "a" * 64, "b" * 64
ANSWERS = "[...document.querySelectorAll('.turns li:not(.asked)')].map(item => item.textContent)"


@pytest.fixture(scope="module")
def served():
    return runpy.run_path(str(SERVED))


@pytest.fixture
def engine(served, small_tokenizer):
    made = served["FakeEngine"](small_tokenizer)
    made.words = {TURKISH: "<b>Merhaba</b>, ben bir modelim. " * 4, SHORT: "kısa bir cevap"}
    made.token_seconds = 0.01
    return made


@pytest.fixture
def serve(served, engine):
    def start(tenants=None):
        names = {"turkish": TURKISH, "short": SHORT}
        settings = HttpSettings(base_name="tiny", context_length=1000)
        app = create_app(
            engine, engine.tokenizer, served["FakeDirectory"](names), tenants, settings
        )
        return served["running"](app, engine)

    return start


def ask(page, text):
    page.run("document.getElementById('prompt').focus()")
    page.type(text)
    page.key("Enter")


def test_three_models_answer_one_prompt_side_by_side(page, serve, engine, tmp_path):
    with serve() as (url, _):
        page.open(f"{url}/")
        page.until("document.querySelectorAll('.column').length === 1")
        page.run("document.getElementById('compare').click()")
        page.run("document.getElementById('compare').click()")
        shown = "[...document.querySelectorAll('.model')].map(select => select.value)"
        assert page.run(shown) == ["tiny", "short", "turkish"]
        assert page.run("document.getElementById('compare').disabled")
        ask(page, "Kendini tanıt.")
        page.until("[...document.querySelectorAll('.count')].every(part => part.textContent)")
        base, short, turkish = page.run(ANSWERS)
        assert base == "one two three four"
        assert short == "kısa bir cevap"
        # What a model says is text: no element came of it.
        assert turkish.startswith("<b>Merhaba</b>")
        assert page.run("document.querySelector('.turns b') === null")
        figures = page.run(
            "document.querySelectorAll('.column')[2].querySelector('footer').innerText"
        )
        assert "first token" in figures
        assert "tokens/s" in figures
        asked = {request.adapter: request for request in engine.requests}
        assert set(asked) == {None, SHORT, TURKISH}
        # A second question goes with what was said before, in each column its own.
        ask(page, "Peki ya sonra?")
        page.until("document.querySelectorAll('.asked').length === 6")
        page.until("document.getElementById('stop').hidden")
        said = engine.tokenizer.decode(engine.requests[-1].prompt)
        assert "Kendini tanıt." in said
        assert "Peki ya sonra?" in said
        for name, look in {"light": {}, "dark": {"dark": True}, "narrow": {"width": 390}}.items():
            page.look(**look)
            (tmp_path / f"{name}.png").write_bytes(page.picture())
            assert page.run("document.documentElement.scrollWidth <= innerWidth"), name
        colors = [(tmp_path / f"{name}.png").read_bytes() for name in ("light", "dark")]
        assert colors[0] != colors[1]
        # Everything came from this server, and nothing complained.
        loaded = page.run("performance.getEntriesByType('resource').map(each => each.name)")
        assert all(each.startswith(url) for each in loaded)
        assert page.wrong == []


def test_escape_stops_an_answer_and_the_engine(page, serve, engine):
    engine.go.clear()
    with serve() as (url, _):
        page.open(f"{url}/")
        page.until("document.querySelectorAll('.column').length === 1")
        ask(page, "Uzun uzun anlat.")
        page.until("document.querySelector('.going') !== null")
        page.key("Escape")
        page.until("document.querySelector('.cut') !== null")
        end = time.monotonic() + 20
        while not engine.cancelled and time.monotonic() < end:
            time.sleep(0.02)
        assert len(engine.cancelled) == 1


def test_a_server_with_keys_asks_for_one(page, serve, served):
    with serve(served["FakeTenants"](right=Caller("acme"))) as (url, _):
        page.open(f"{url}/")
        page.until("!document.getElementById('key-form').hidden")
        for key, state in (("wrong", "the key is not known"), ("right", "tiny, 2 adapters")):
            page.run("document.getElementById('key').focus()")
            page.type(key)
            page.key("Enter")
            page.until(f"document.getElementById('state').textContent === {json.dumps(state)}")
        assert page.run("document.getElementById('key-form').hidden")
        assert page.run("document.getElementById('key').value") == ""
