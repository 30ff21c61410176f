"""``ince lr-find``: which learning rate a recipe should have."""

from pathlib import Path
from typing import Any

import click

from ince.cli.output import common_options, print_json, progress_console, result_console
from ince.cli.recipe_argument import read_recipe

__all__ = ["lr_find"]

_FILE = "lr_find.json"
_PIPE_WIDTH = 100


@click.command(
    name="lr-find",
    epilog="Example: ince lr-find recipe.yaml lora.r=32 --plot lr.png",
)
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--from",
    "low",
    type=float,
    default=1e-6,
    show_default=True,
    metavar="RATE",
    help="Rate of the first step.",
)
@click.option(
    "--to",
    "high",
    type=float,
    default=1e-1,
    show_default=True,
    metavar="RATE",
    help="Rate of the last step.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=60,
    show_default=True,
    help="Steps between them, each a batch of the recipe.",
)
@click.option(
    "--stop-factor",
    type=float,
    default=3.0,
    show_default=True,
    help="End early when the smoothed loss is so many times its best.",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it as a picture (.png), too.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Folder for {_FILE}.  [default: the recipe's output with -lr-find]",
)
@common_options
def lr_find(
    recipe: str,
    overrides: tuple[str, ...],
    low: float,
    high: float,
    steps: int,
    stop_factor: float,
    plot: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Train as RECIPE says for a few steps, with rates that grow, and suggest a learning rate.

    The loss stays, falls, and blows up as the rate grows; the curve shows where. Model, adapter,
    data, batches and optimizer are the recipe's. Nothing of this training is kept, and the run's
    own folder is not touched. Ctrl-C shows what is known so far.

    KEY=VALUE changes a key of the recipe, the value written as in YAML.
    """
    from ince.cli.output_checks import check_folder, check_png
    from ince.search import find_lr

    if plot is not None:
        check_png(plot)
    resolved = read_recipe(recipe, overrides)
    folder = out if out is not None else Path(f"{resolved.output_folder}-lr-find")
    check_folder(folder)

    def keep(content: dict[str, Any]) -> None:
        _write(content, folder, plot)
        if not as_json:
            _show(content, folder, plot)

    content = find_lr(
        resolved,
        low=low,
        high=high,
        num_steps=steps,
        stop_factor=stop_factor,
        console=progress_console(),
        known=keep,
    )
    _write(content, folder, plot)
    if as_json:
        print_json({"file": str(folder / _FILE), "plot": plot, **content})
        return
    _show(content, folder, plot)


def _write(content: dict[str, Any], folder: Path, plot: Path | None) -> None:
    from ince.files import replace_file, write_json

    write_json(folder / _FILE, content)
    if plot is not None:
        from ince.report.search_picture import lr_find_png

        picture = lr_find_png(content)
        with replace_file(plot) as temporary:
            temporary.write_bytes(picture)


def _show(content: dict[str, Any], folder: Path, plot: Path | None) -> None:
    from ince.report.lr_find_terminal import lr_find_lines

    out = result_console()
    for line in lr_find_lines(content, width=out.width if out.is_terminal else _PIPE_WIDTH):
        out.print(line)
    out.print(f"{'details':<12}{folder / _FILE}", markup=False)
    if plot is not None:
        out.print(f"{'plot':<12}{plot}", markup=False)
