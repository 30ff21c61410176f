"""``ince demo``: the whole journey on the packaged model."""

from pathlib import Path

import click

from ince.cli.output import common_options, print_json, print_run, progress_console
from ince.record import RunRecord

__all__ = ["demo"]


@click.command(
    epilog="Example: ince demo --output runs/demo",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/demo"),
    show_default=True,
    help="Folder of the run.",
)
@click.option("--quick", is_flag=True, help="A tenth of it, to see that everything works.")
@common_options
def demo(output: Path, quick: bool, as_json: bool) -> None:
    """Fine-tune a small model on Turkish, measure it, merge it and prove the merge.

    Takes minutes on two CPU cores and needs no network. What it gained stands in a table at the
    end, each score with its interval, beside what the model lost; the report has the rest.
    """
    from ince.demo import run_demo

    summary = run_demo(output=output, quick=quick, console=progress_console())
    if as_json:
        print_json(summary)
        return
    print_run(RunRecord.read(output))
