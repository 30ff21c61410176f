"""``ince plan``: will it fit, how long, how much."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ince.cli.output import common_options, print_json, result_console
from ince.errors import InputError
from ince.units import parse_bytes, parse_count

if TYPE_CHECKING:
    from ince.plan.overview import Overview

__all__ = ["plan"]

_RECIPES = (".yaml", ".yml", ".toml")


def _is_recipe(text: str) -> bool:
    if text.lower().endswith(_RECIPES):
        return True
    try:
        return (Path(text).expanduser() / "recipe.yaml").is_file()
    except (OSError, ValueError, RuntimeError):  # no file could have this name
        return False


def _check_out(path: Path | None, option: str, ending: tuple[str, ...]) -> None:
    if path is None:
        return
    if path.suffix.lower() not in ending:
        raise InputError(
            "a file of another kind is written",
            where=option,
            got=path.name,
            expected=f"a name that ends in {' or '.join(ending)}",
        )
    if not path.expanduser().absolute().parent.is_dir():
        raise InputError("there is no such folder to write into", where=option, got=str(path))


@click.command(
    epilog="Example: ince plan llama-3-70b --device l40s --rank 64 --tokens 10M --price 1.2"
)
@click.argument("target", metavar="MODEL|RECIPE")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--memory", help="What it may take, such as 48GiB; then a way to fit is looked for.")
@click.option(
    "--device", help="A device by name, such as h100 or 4090, in place of this machine's."
)
@click.option("--tokens", help="Tokens of the run, such as 10M: for its time.")
@click.option("--price", type=float, help="Of an hour of one device: for what the run costs.")
@click.option(
    "--method",
    type=click.Choice(["full", "lora", "qlora"]),
    help="The one that is to fit; by default qlora, and of a recipe its own.",
)
@click.option("--rank", type=int, help="Of the adapters (16).")
@click.option("--length", type=int, help="Tokens of a row (2048).")
@click.option("--rows", type=int, help="Rows in a forward (1).")
@click.option(
    "--activations",
    type=click.Choice(["keep", "recompute", "offload"]),
    help="What is kept for the backward pass (keep).",
)
@click.option("--data", help="Training data that a recipe written for a model names.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it into a .png as well.")
@click.option(
    "--write", type=click.Path(path_type=Path), help="Save what fits as a recipe that runs."
)
@common_options
def plan(
    target: str,
    overrides: tuple[str, ...],
    memory: str | None,
    device: str | None,
    tokens: str | None,
    price: float | None,
    method: str | None,
    rank: int | None,
    length: int | None,
    rows: int | None,
    activations: str | None,
    data: str | None,
    plot: Path | None,
    write: Path | None,
    as_json: bool,
) -> None:
    """Plan MODEL (a well-known name, a hub id, a folder, a config.json) or RECIPE before it runs.

    Full fine-tuning, LoRA and QLoRA side by side: bytes by component at the peak of a step, and
    when that is; time and money. With --memory or --device, what to turn on so that it fits, in
    what order, at what price in time. No weight is read, and nothing is loaded.

    --memory without --device means an accelerator of that size, for a recipe this machine.
    """
    _check_out(plot, "--plot", (".png",))
    _check_out(write, "--write", (".yaml", ".yml"))
    if plot is not None:
        from ince.report.adapter_picture import check_can_draw_png

        check_can_draw_png()
    from ince.recipe.planning import Wish, planned_model, planned_recipe, write_recipe

    wish = Wish(
        memory=None if memory is None else parse_bytes(memory),
        device=device,
        num_tokens=None if tokens is None else parse_count(tokens),
        price=price,
        method=method,
        rank=rank,
        length=length,
        rows=rows,
        activations=activations,
    )
    if _is_recipe(target):
        from ince.cli.recipe_argument import read_recipe

        recipe = read_recipe(target, overrides)
        found = planned_recipe(recipe, wish)
    elif overrides:
        raise InputError("keys can be changed of a recipe only", got=overrides[0])
    else:
        recipe, found = None, planned_model(target, wish)
    if write is not None:
        write_recipe(write.expanduser(), found, base=target, recipe=recipe, data=data)
    _show(found, plot, as_json=as_json)


def _show(found: "Overview", plot: Path | None, *, as_json: bool) -> None:
    if plot is not None:
        from ince.files import replace_file
        from ince.report.plan_picture import plan_png

        with replace_file(plot.expanduser()) as temporary:
            temporary.write_bytes(plan_png(found))
    if as_json:
        print_json(found.to_dict())
        return
    from ince.report.plan_terminal import plan_lines

    out = result_console()
    if not out.is_terminal:
        out.width = 200
    for line in plan_lines(found):
        out.print(line)
