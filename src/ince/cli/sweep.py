"""``ince sweep``: many settings of a recipe, the losers stopped early."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ince.cli.output import common_options, print_json, progress_console, result_console
from ince.cli.recipe_argument import read_recipe
from ince.errors import (
    DiskFullError,
    InceError,
    InputError,
    InterruptedRunError,
    TrainingError,
)

if TYPE_CHECKING:
    from ince.recipe import Recipe
    from ince.search import Sweep
    from ince.search.plan import SweepPlan

__all__ = ["sweep"]

_PIPE_WIDTH = 160


@click.command(
    epilog="Example: ince sweep recipe.yaml lora.r=8,16,64 train.lr=2e-4,1e-3 --dry-run",
)
@click.argument("recipe")
@click.argument("values", nargs=-1, metavar="KEY=VALUE,VALUE...")
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Most steps of a candidate that is trained to the end.  [default: the recipe's]",
)
@click.option(
    "--eta",
    type=click.IntRange(min=2),
    default=3,
    show_default=True,
    help="The better 1/ETA go on from a rung to the next, which is ETA times as long.",
)
@click.option(
    "--min-steps",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Fewest steps before any candidate is stopped.",
)
@click.option(
    "--random",
    "sample",
    type=click.IntRange(min=1),
    metavar="N",
    help="Try N of the combinations, drawn at random.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of that drawing."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the sweep.  [default: the recipe's output with -sweep]",
)
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Draw the curves as a picture (.png)."
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--fresh", is_flag=True, help="Start again, even where a sweep could be continued.")
@click.option("--yes", is_flag=True, help="More than 200 candidates are meant.")
@common_options
def sweep(
    recipe: str,
    values: tuple[str, ...],
    budget: int | None,
    eta: int,
    min_steps: int,
    sample: int | None,
    seed: int,
    out: Path | None,
    plot: Path | None,
    dry_run: bool,
    fresh: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Train RECIPE with every combination of the values given, and stop the losers early.

    All candidates train to a first rung; the better ones by held-out loss go on from where they
    are, and the best is trained to the end. Each is a run of its own that `ince train` can take
    up. The same command goes on with a sweep that was cut off.

    Values are written as in YAML, with commas between them; lists in brackets. A key with a
    single value has it in every candidate.
    """
    from ince.cli.output_checks import check_folder, check_png

    if plot is not None:
        check_png(plot)
    planned = _sweep(
        recipe,
        values,
        budget=budget,
        eta=eta,
        min_steps=min_steps,
        sample=sample,
        seed=seed,
        out=out,
        yes=yes,
    )
    console = progress_console()
    if dry_run:
        _show_plan(planned, planned.plan(console=console), as_json=as_json)
        return
    check_folder(planned.folder)
    try:
        state = planned.run(console=console, fresh=fresh)
    except (DiskFullError, InterruptedRunError, TrainingError):
        # What was reached is worth showing; an error in that must not hide this one.
        _show_part(planned.folder, as_json=as_json)
        raise
    files = _write(planned.folder, plot)
    if as_json:
        print_json({"sweep": str(planned.folder), **files, **state.content})
        return
    _show(state.content, planned.folder, files)


def _sweep(
    recipe: str,
    values: Sequence[str],
    *,
    budget: int | None,
    eta: int,
    min_steps: int,
    sample: int | None,
    seed: int,
    out: Path | None,
    yes: bool,
) -> "Sweep":
    from ince.search import Sweep, build_candidates, choose_values, parse_axes

    axes, fixed = parse_axes(values)
    if budget is not None:
        if any(axis.key == "train.max_steps" for axis in axes):
            raise InputError(
                "the length of a candidate is given twice",
                got=f"--budget {budget}, and values for train.max_steps",
                do="leave one of them out",
            )
        fixed = [*fixed, f"train.max_steps={budget}"]
    points = choose_values(axes, sample=sample, seed=seed, yes=yes)

    def read(more: Sequence[str]) -> "Recipe":
        return read_recipe(recipe, [*fixed, *more])

    folder = out
    if folder is None:
        # The recipe's output, which no axis changes; its mistakes are reported for all below.
        try:
            first = read([f"{key}={text}" for key, text in points[0].items()])
            folder = Path(f"{first.output_folder}-sweep")
        except InputError:
            folder = Path("sweep")
    candidates = build_candidates(axes, points, read, folder=folder.expanduser(), where=recipe)
    return Sweep(candidates, folder.expanduser(), recipe, eta=eta, min_steps=min_steps)


def _write(folder: Path, plot: Path | None) -> dict[str, str]:
    from ince.report.sweep_page import write_sweep_page

    files = {"page": str(write_sweep_page(folder))}
    if plot is not None:
        from ince.files import replace_file
        from ince.report.search_picture import sweep_png
        from ince.report.sweep_view import read_sweep

        picture = sweep_png(read_sweep(folder))
        with replace_file(plot) as temporary:
            temporary.write_bytes(picture)
        files["plot"] = str(plot)
    return files


def _show(content: dict[str, Any], folder: Path, files: dict[str, str]) -> None:
    from ince.report.sweep_terminal import sweep_summary

    out = result_console()
    if not out.is_terminal:
        out.width = _PIPE_WIDTH
    out.print(sweep_summary(content, folder))
    for label, path in files.items():
        out.print(f"{label:<11}{path}", markup=False)


def _show_part(folder: Path, *, as_json: bool) -> None:
    """What a sweep that ended early had reached: the page, and the table beside the error."""
    from ince.files import read_json

    try:
        content: dict[str, Any] = read_json(folder / "sweep.json")
        if not any(each["losses"] for each in content["candidates"]):
            return
        files = _write(folder, None)
        if not as_json:
            _show(content, folder, files)
    except (InceError, OSError, KeyError, TypeError):
        return


def _show_plan(planned: "Sweep", plan: "SweepPlan", *, as_json: bool) -> None:
    rungs = [
        {
            "share": float(rung.share),
            "num_candidates": rung.num_candidates,
            "steps": [rung.steps(num) for num in (min(plan.num_steps), max(plan.num_steps))],
        }
        for rung in plan.rungs
    ]
    if as_json:
        print_json(
            {
                "sweep": str(planned.folder),
                "candidates": [
                    {"name": each.name, "values": each.values, "num_steps": steps}
                    for each, steps in zip(planned.candidates, plan.num_steps, strict=True)
                ],
                "rungs": rungs,
                "cost": plan.cost,
                "remarks": plan.remarks,
            }
        )
        return
    from ince.report.sweep_terminal import plan_lines

    out = result_console()
    names = [each.name for each in planned.candidates]
    for line in plan_lines(names, rungs, cost=plan.cost, remarks=plan.remarks):
        out.print(line)
    out.print(f"{'folder':<11}{planned.folder}", markup=False)
