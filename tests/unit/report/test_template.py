"""Templates escape what they are given, and refuse to leave anything out."""

import jinja2
import pytest

from ince.report.template import page_template


@pytest.mark.parametrize(
    "names",
    [("report.html.j2", "report.css"), ("adapter.html.j2", "adapter.css", "report.css")],
)
def test_a_page_is_made_once_and_misses_nothing(names):
    template = page_template(*names)
    assert page_template(*names) is template
    assert template.environment.autoescape
    with pytest.raises(jinja2.UndefinedError):
        template.render()
