"""Where results are to be written: refused before the work is done, not after it."""

import os
from pathlib import Path

from ince.errors import InputError

__all__ = ["check_folder", "check_png"]


def check_png(plot: Path) -> None:
    """Refuse what no picture could be written to.

    Raises:
        InputError: another ending, no folder for it, or nothing that draws.
    """
    if plot.suffix.lower() != ".png":
        raise InputError(
            "a plot is a picture",
            where=plot,
            got=plot.suffix or "no ending",
            expected="a name that ends in .png",
        )
    if not plot.absolute().parent.is_dir():
        raise InputError(
            "no such folder for the plot", where=plot.parent, do="make the folder first"
        )
    if plot.is_dir():
        raise InputError("there is a folder where the plot is to be written", where=plot)
    from ince.report.search_picture import check_can_draw

    check_can_draw()


def check_folder(folder: Path) -> None:
    """Refuse a folder that could not be made or written to. Nothing is made.

    Raises:
        InputError: a file is in the way, or permission is missing.
    """
    absolute = folder.absolute()
    there = next(each for each in (absolute, *absolute.parents) if each.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return
    raise InputError(
        "cannot write here: "
        + ("permission denied" if there.is_dir() else "this is a file, not a folder"),
        where=there,
        do="choose another folder with --out",
    )
