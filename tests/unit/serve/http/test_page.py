"""The playground's files: open to all, bound to their own server, asking nobody else."""

import re

import pytest


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/playground/playground.css", "text/css"),
        ("/playground/playground.js", "text/javascript"),
    ],
)
def test_the_page_is_shown_before_there_is_a_key(serve, fakes, path, kind):
    answer = serve(tenants=fakes.Tenants()).http.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(kind)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?://", answer.text)


def test_the_page_is_no_part_of_the_api(serve):
    assert not [path for path in serve().http.get("/openapi.json").json()["paths"] if path == "/"]


def test_what_is_beside_the_page_cannot_be_had(serve):
    for path in ("/playground/", "/playground/../page.py", "/playground/%2e%2e/page.py"):
        assert serve().http.get(path).status_code == 404
