"""``ince eval``: an adapter against its base, or a model against another, on held-out rows."""

import gc
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from ince.cli.held_out import HeldOut, Limits, Side, alone, measure, metrics, read_held_out
from ince.cli.output import common_options, print_json, progress_console, result_console
from ince.cli.target import Loaded, QuantizeChoice, Target, find_target, load_target
from ince.errors import DataError, InputError

if TYPE_CHECKING:
    from ince.data import DataConfig

__all__ = ["evaluate"]


def _data_config(target: Target, data: str | None) -> "DataConfig":
    """How the rows are read: as the run read its own, or by default."""
    from ince.data import DataConfig

    recorded: dict[str, Any] = dict((target.recipe or {}).get("data") or {})
    path = data if data is not None else recorded.get("eval")
    if path is None:
        raise InputError(
            "no held-out rows are named",
            where=target.text,
            expected="a run whose recipe has data.eval, or a file",
            do="add --data FILE",
        )
    known = {key: value for key, value in recorded.items() if key in DataConfig.model_fields}
    config = DataConfig.model_validate({**known, "train": path, "eval": path})
    # Another file may have another form than the run's own.
    return config if data is None else config.model_copy(update={"format": "auto"})


def _measure_loaded(
    loaded: Loaded, held_out: HeldOut, limits: Limits, console: Console
) -> tuple[Side, Side | None]:
    """The base and, where there is one, the adapter on it."""
    from ince.recipe.progress import RunProgress

    with RunProgress(console).bars() as report:
        off = nullcontext() if loaded.adapted is None else loaded.adapted.disable_adapter()
        with off:
            base = measure(loaded.model, loaded.tokenizer, held_out, limits, "base", report)
        if loaded.adapted is None:
            return base, None
        tuned = measure(loaded.model, loaded.tokenizer, held_out, limits, "tuned", report)
        return base, tuned


@click.command(
    "eval",
    epilog="Example: ince eval runs/turkish --data unseen.jsonl",
)
@click.argument("target")
@click.option("--data", help="Held-out rows; of a run, its data.eval when not given.")
@click.option("--base", help="Compare with this model; for an adapter, the base it goes on.")
@click.option(
    "--num-rows",
    type=click.IntRange(min=0),
    default=200,
    show_default=True,
    help="Rows that are answered and scored, spread over the file.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Length at which an answer is cut.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Answers generated at a time.",
)
@click.option(
    "--english",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A text file for bits per byte: what was forgotten.",
)
@click.option(
    "--quantize",
    type=click.Choice(["nf4", "none"]),
    help="Bits of the base; of a run as it was trained, else 16.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@common_options
def evaluate(
    target: str,
    data: str | None,
    base: str | None,
    num_rows: int,
    max_new_tokens: int,
    batch_size: int,
    english: Path | None,
    quantize: QuantizeChoice | None,
    device: str,
    as_json: bool,
) -> None:
    """Measure TARGET (a run, an adapter or a model) on held-out rows.

    A run or an adapter is compared with its base, a model with --base. Loss and perplexity are
    over all rows, exact match and chrF over answers; differences carry 95% intervals of a paired
    bootstrap. The echo is the score of giving the question back.
    """
    from ince.evaluate.comparison import evaluation
    from ince.report.terminal import before_after_table

    console = progress_console()
    limits = Limits(max_new_tokens, batch_size)
    found = find_target(text=target, quantize=quantize)
    against: Target | None = found.trained_from
    if base is not None and found.adapter is not None:
        found = replace(found, base=base, revision=None)
    elif base is not None:
        against = find_target(base, quantize=quantize)
    config = _data_config(found, data)
    if not Path(config.train).is_file():
        raise DataError("no such data file", where=config.train)

    loaded = load_target(found if against is None else against, console, device=device)
    held_out = read_held_out(config, loaded.tokenizer, num_rows=num_rows, english=english)
    before, after = _measure_loaded(loaded, held_out, limits, console)
    if against is not None:
        # What --base names is one side, its adapter included where it has one.
        before = before if after is None else after
        # One model in memory at a time; each reads the rows with its own tokenizer.
        del loaded
        gc.collect()
        loaded = load_target(found, console, device=device)
        held_out = read_held_out(config, loaded.tokenizer, num_rows=num_rows, english=english)
        after, _ = _measure_loaded(loaded, held_out, limits, console)
    scores = metrics(held_out, before, before if after is None else after)
    if not any(score["name"] == "heldout_loss" for score in scores):
        console.print("the two models cut the rows into other tokens: their losses do not compare")
    content = evaluation(scores if after is not None else alone(scores))
    if as_json:
        print_json(
            {
                "target": target,
                "base": found.base if against is None else against.base,
                "adapter": None if found.adapter is None else str(found.adapter),
                "data": held_out.report,
                "evaluation": content,
            }
        )
        return
    out = result_console()
    out.print(before_after_table(content))
