import re
import runpy
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ince.lora.insight import compare_adapters
from ince.report.adapter_curves import draw_adapters
from ince.report.adapter_page import render_adapter_page

make_insight = runpy.run_path(str(Path(__file__).with_name("adapters.py")))["make_insight"]

VOID = {"meta", "link", "br"}
HOSTILE = "</bdi><script>alert(1)</script>\"'{{ 7*7 }}"


class Outline(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def count(self, tag, style=""):
        classes = (attrs.get("class") or "" for found, attrs in self.tags if found == tag)
        return sum(style in each.split() for each in classes) if style else len(list(classes))


def outline(page):
    found = Outline()
    found.feed(page)
    assert found.open == []
    return found


@pytest.fixture
def first(tmp_path):
    return make_insight(tmp_path / "first")


@pytest.fixture
def pages(first, tmp_path):
    second = make_insight(tmp_path / "second", seed=1)
    comparison = compare_adapters(first, second)
    return (
        render_adapter_page(draw_adapters(first, names=("one",)), first),
        render_adapter_page(
            draw_adapters(first, second, comparison, names=("one", "two")),
            first,
            second,
            comparison,
        ),
    )


def test_a_page_of_one_adapter(pages):
    found = outline(pages[0])
    assert found.count("svg", "plot") == 2 * 2
    assert found.count("svg", "map") == 0
    assert found.count("h1") == 1
    assert "q_proj" in pages[0]


def test_a_page_of_two(pages):
    found = outline(pages[1])
    assert found.count("svg", "map") == 6
    assert found.count("svg", "plot") == 2 * 2
    assert "one beside two" in pages[1]
    assert "random directions" in pages[1]


def test_pages_ask_nobody_and_run_nothing(pages):
    for page in pages:
        tags = outline(page).tags
        assert not [tag for tag, _ in tags if tag in ("script", "img", "iframe", "object")]
        links = [
            value for _, attrs in tags for name, value in attrs.items() if name in ("href", "src")
        ]
        assert all(link.startswith(("#", "data:")) for link in links)
        assert "default-src 'none'" in page
        assert not re.search(r"url\(|@import", page)


def test_light_and_dark_have_their_colors(pages):
    assert pages[0].count("prefers-color-scheme: dark") >= 2


def test_every_drawing_is_described(pages):
    for page in pages:
        drawings = [attrs for tag, attrs in outline(page).tags if attrs.get("role") == "img"]
        assert drawings
        assert all(len(attrs["aria-label"]) > 20 for attrs in drawings)


def test_names_of_strangers_are_text(tmp_path):
    found = make_insight(
        tmp_path / "a",
        kinds=["<b>x"],
        base_model_name_or_path=HOSTILE,
        target_modules=[HOSTILE],
    )
    page = render_adapter_page(draw_adapters(found, names=(HOSTILE,)), found)
    assert outline(page).count("script") == 0
    assert "<b>x" not in page
    assert "{{ 7*7 }}" in page


def test_nothing_to_draw_is_a_page_all_the_same(tmp_path):
    found = make_insight(tmp_path / "z", zero=True)
    page = render_adapter_page(draw_adapters(found, names=("z",)), found)
    assert outline(page).count("svg", "plot") == 0
    assert "every ΔW is zero" in page
