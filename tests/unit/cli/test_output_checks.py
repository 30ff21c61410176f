import importlib.util
import os

import pytest

from ince.cli.output_checks import check_folder, check_png
from ince.errors import InputError


def test_a_picture_has_a_name_and_a_folder(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    check_png(tmp_path / "x.PNG")
    for name, words in (
        ("x.html", "ends in .png"),
        ("x", "no ending"),
        ("nowhere/x.png", "make the folder first"),
    ):
        with pytest.raises(InputError) as caught:
            check_png(tmp_path / name)
        assert words in str(caught.value)
    (tmp_path / "y.png").mkdir()
    with pytest.raises(InputError, match="a folder where the plot"):
        check_png(tmp_path / "y.png")


def test_without_matplotlib_it_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="matplotlib") as caught:
        check_png(tmp_path / "x.png")
    assert "leave --plot out" in str(caught.value)


def test_a_folder_that_can_be_made_is_not_made(tmp_path):
    check_folder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for path in ("file", "file/inside"):
        with pytest.raises(InputError, match="not a folder"):
            check_folder(tmp_path / path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="permission denied"):
        check_folder(tmp_path / "x")
    tmp_path.chmod(0o700)
