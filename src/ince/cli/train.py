"""``ince train``: run a recipe, or go on with a run that was cut off."""

import click

from ince.cli.output import common_options, print_json, print_run, progress_console
from ince.cli.recipe_argument import read_recipe
from ince.errors import InceError

__all__ = ["train"]


@click.command(
    epilog="Example: ince train recipe.yaml train.lr=1e-4 lora.r=32 output=runs/r32",
)
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--fresh", is_flag=True, help="Start again, even where a run could be continued.")
@common_options
def train(recipe: str, overrides: tuple[str, ...], fresh: bool, as_json: bool) -> None:
    """Train an adapter as RECIPE (YAML or TOML) says, and measure it against its base.

    With train.method=full every weight is trained, and the result is a model.

    RECIPE may be the folder of a run. A run that was cut off goes on where it stopped when the
    same command is given again. Ctrl-C saves a checkpoint first; twice stops at once.

    KEY=VALUE changes a key of the recipe, the value written as in YAML.
    """
    from ince.recipe.run import run_recipe
    from ince.report import write_report

    resolved = read_recipe(recipe, overrides)
    console = progress_console()
    try:
        record = run_recipe(resolved, resume=not fresh, console=console)
    except (InceError, KeyboardInterrupt):
        # What was done is worth a page, too; an error in drawing it must not hide this one.
        if (resolved.output_folder / "log.jsonl").is_file():
            try:
                write_report(resolved.output_folder)
            except (InceError, OSError):
                console.print("the report of the part that was done could not be written")
        raise
    run = record.path.parent
    report = write_report(run)
    if as_json:
        print_json({"run": str(run), "report": str(report), "record": record.content})
        return
    print_run(record)
