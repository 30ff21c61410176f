import io

from rich.console import Console

from ince.recipe.progress import RunProgress


def last_lines(width, *reports):
    screen = io.StringIO()
    console = Console(file=screen, width=width, force_terminal=True, force_interactive=True)
    with RunProgress(console).bars() as report:
        for each in reports:
            report(*each)
        screen.truncate(screen.seek(0))  # what the last refresh draws is all of it
    return screen.getvalue()


def test_bytes_are_told_as_bytes():
    shown = last_lines(100, ("loading", 3 * 2**29, 3 * 2**30))
    assert "1.50 GiB of 3.00 GiB" in shown


def test_steps_are_counted():
    shown = last_lines(100, ("evaluating", 3, 40), ("loading", 0, 1))
    assert "3/40" in shown
    assert "0/1" in shown


def test_an_amount_is_not_folded_in_a_narrow_terminal():
    shown = last_lines(80, ("loading", 2**29, 2**30), ("evaluating the base on many rows", 1, 2))
    assert "512 MiB of 1.00 GiB" in shown


def test_nothing_is_drawn_where_no_terminal_is():
    out = io.StringIO()
    with RunProgress(Console(file=out)).bars() as report:
        report("loading", 1, 2)
    assert out.getvalue().strip() == ""
