"""``ince data``: data files, looked at before anything is trained on them."""

from typing import TYPE_CHECKING, cast

import click

from ince.cli.output import common_options, print_json, progress_console, result_console
from ince.errors import DataError, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ince.data import DataConfig
    from ince.data.template import Example

__all__ = ["data"]

_FORMATS = ("auto", "messages", "sharegpt", "alpaca", "prompt-completion", "text")
_LOSS_ON = ("assistant", "last", "all")


@click.group(invoke_without_command=True)
@click.pass_context
def data(ctx: click.Context) -> None:
    """Look at data as the model will see them."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _tokenizer(reference: str) -> "PreTrainedTokenizerBase":
    from ince.models import load_tokenizer, resolve
    from ince.recipe.progress import RunProgress

    with RunProgress(progress_console()).bars() as report:
        resolved = resolve(reference, convert=False, progress=report)
    return load_tokenizer(resolved.folder)


def _encoded_row(
    file: str, number: int, config: "DataConfig", tokenizer: "PreTrainedTokenizerBase"
) -> "Example":
    """The example made of one row of the file."""
    from ince.data.dataset import Converted, convert_source, encode_rows
    from ince.data.sources import read_source

    source = read_source(file)
    converted = convert_source(source, config.format)
    wanted = tuple(item for item in converted.items if item[0] == number)
    rows = encode_rows(Converted(converted.shape, wanted, ()), config, tokenizer)
    if rows.examples:
        return rows.examples[0][1]
    reasons = [
        problem
        for problem in (*converted.problems, *rows.too_long, *rows.unusable)
        if problem.number == number
    ]
    if reasons:
        raise DataError(
            "this row cannot be trained on", where=source.place(number), got=str(reasons[0])
        )
    numbers = [row.number for row in source.rows]
    raise InputError(
        f"the file has no {source.unit} {number} with a row",
        where=file,
        expected=f"{min(numbers)} to {max(numbers)}" if numbers else "rows",
    )


def _example_facts(
    example: "Example", tokenizer: "PreTrainedTokenizerBase", number: int
) -> dict[str, object]:
    ids = list(example.input_ids)
    return {
        "number": number,
        "source": example.source,
        "tokens": [
            tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for token in ids
        ],
        "input_ids": ids,
        "learnt": list(example.targets),
        "num_truncated": example.num_truncated,
    }


@data.command(
    short_help="what is in a file, and what the model makes of it",
    epilog="Example: ince data inspect train.jsonl --model smollm2-135m-instruct --row 3",
)
@click.argument("file")
@click.option("--model", help="Count its tokens and show what is learnt: any model reference.")
@click.option("--row", type=click.IntRange(min=1), help="Show this line (or row) in tokens.")
@click.option(
    "--format",
    "shape",
    type=click.Choice(_FORMATS),
    default="auto",
    show_default=True,
    help="Form of the rows.",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=8),
    default=1024,
    show_default=True,
    help="Most tokens of an example.",
)
@click.option(
    "--loss-on",
    type=click.Choice(_LOSS_ON),
    default="assistant",
    show_default=True,
    help="Which turns are learnt.",
)
@common_options
def inspect(
    file: str,
    model: str | None,
    row: int | None,
    shape: str,
    max_length: int,
    loss_on: str,
    as_json: bool,
) -> None:
    """Say what is in FILE: its form, its rows, lengths in tokens, and which rows cannot be used.

    With --model an example is shown as the model sees it, learnt tokens marked.
    """
    if row is not None and model is None:
        raise InputError(
            "a row in tokens needs a model to make them", do="add --model smollm2-135m-instruct"
        )
    from ince.data.config import DataConfig, LossOn, ShapeChoice
    from ince.data.inspect import inspect_file
    from ince.data.view import render, token_view

    config = DataConfig(
        train=file,
        format=cast(ShapeChoice, shape),
        max_length=max_length,
        loss_on=cast(LossOn, loss_on),
    )
    tokenizer = None if model is None else _tokenizer(model)
    if row is not None and tokenizer is not None:
        example = _encoded_row(file, row, config, tokenizer)
        if as_json:
            print_json({"row": _example_facts(example, tokenizer, row)})
        else:
            result_console().print(token_view(example, tokenizer))
        return
    found = inspect_file(file, tokenizer, config)
    if as_json:
        print_json(found.to_dict())
    else:
        result_console().print(render(found, tokenizer))
