"""``ince data``: data files, looked at before anything is trained on them."""

from typing import TYPE_CHECKING, cast

import click

from ince.cli.output import common_options, print_json, progress_console, result_console
from ince.errors import DataError, InputError, TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ince.data import DataConfig, Fitted
    from ince.data.close_up import CloseUp

__all__ = ["data"]

_FORMATS = (
    "auto",
    "messages",
    "sharegpt",
    "alpaca",
    "prompt-completion",
    "plain-completion",
    "text",
)
_LOSS_ON = ("assistant", "last", "completion", "all")
_TRUNCATION = ("right", "left", "split", "drop")


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


def _row_facts(
    file: str, number: int, config: "DataConfig", tokenizer: "PreTrainedTokenizerBase"
) -> "tuple[Fitted, list[CloseUp]]":
    """The examples made of one row of the file."""
    from ince.data.close_up import close_up
    from ince.data.dataset import convert_source, fit_row
    from ince.data.sources import read_source
    from ince.data.template import Encoder

    source = read_source(file)
    converted = convert_source(source, config.format)
    place = source.place(number)
    item = next((item for row, item in converted.items if row == number), None)
    if item is None:
        problem = next((p for p in converted.problems if p.number == number), None)
        if problem is not None:
            raise DataError("this row cannot be trained on", where=place, got=str(problem))
        numbers = [row.number for row in source.rows]
        raise InputError(
            f"the file has no {source.unit} {number} with a row",
            where=file,
            expected=f"{min(numbers)} to {max(numbers)}" if numbers else "rows",
        )
    encoder = Encoder(tokenizer)
    try:
        fitted = fit_row(item, encoder, config)
    except (DataError, TemplateError) as error:
        raise type(error)(
            f"this row cannot be trained on: {error.what}", where=place, got=error.got, do=error.do
        ) from error
    if not fitted.examples:
        raise DataError(
            "this row cannot be trained on: longer than max_length",
            where=place,
            got=f"{fitted.num_tokens} tokens",
            expected=f"at most {config.max_length}",
        )
    shown = [
        close_up(example, part, encoder, config.loss_on)
        for example, part in zip(fitted.examples, fitted.parts, strict=True)
    ]
    return fitted, shown


def _show_row(
    file: str,
    number: int,
    config: "DataConfig",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    as_json: bool,
) -> None:
    from rich.text import Text

    from ince.data.token_view import token_view, turn_table

    fitted, shown = _row_facts(file, number, config, tokenizer)
    if as_json:
        row: dict[str, object] = {"number": number, "num_tokens": fitted.num_tokens}
        row |= {"truncation": config.truncation, "lost": vars(fitted.lost)}
        print_json({"row": row | {"examples": [one.to_dict() for one in shown]}})
        return
    out = result_console()
    for one in shown:
        if len(shown) > 1:
            out.print(Text(f"\n{one.example.source}", style="bold"))
        out.print(token_view(one))
        out.print()
        out.print(turn_table(one))
    out.print(Text("\n⟦ ⟧ learnt   ■ stop token of a turn   shades: one token each", style="dim"))


def _show_packed(
    file: str,
    number: int,
    config: "DataConfig",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    as_json: bool,
) -> None:
    from ince.data.close_up import packed_close_up
    from ince.data.dataset import load_split
    from ince.data.packing import pack_rows
    from ince.data.template import Encoder
    from ince.data.token_view import packed_view
    from ince.recipe.progress import RunProgress

    with RunProgress(progress_console()).bars() as report:
        split = load_split(
            file,
            config,
            tokenizer,
            progress=lambda done, total: report("reading rows", done, total),
        )
    examples = split.examples
    rows = pack_rows(
        examples, range(len(examples)), config.max_length, share=config.share_beginnings
    )
    if number > len(rows):
        raise InputError(
            f"there is no packed row {number}", where=file, expected=f"1 to {len(rows)}"
        )
    pad_id = tokenizer.pad_token_id
    shown = packed_close_up(
        rows[number - 1],
        Encoder(tokenizer),
        pad_id=pad_id if isinstance(pad_id, int) else 0,
        number=number,
        num_rows=len(rows),
        max_length=config.max_length,
    )
    if as_json:
        print_json({"packed": shown.to_dict()})
    else:
        result_console().print(packed_view(shown))


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
@click.option(
    "--truncation",
    type=click.Choice(_TRUNCATION),
    default="right",
    show_default=True,
    help="What happens to rows that are too long.",
)
@click.option("--system", help="System message for conversations that bring none.")
@click.option(
    "--packed", type=click.IntRange(min=1), help="Show this packed row as the model sees it."
)
@common_options
def inspect(
    file: str,
    model: str | None,
    row: int | None,
    shape: str,
    max_length: int,
    loss_on: str,
    truncation: str,
    system: str | None,
    packed: int | None,
    as_json: bool,
) -> None:
    """Say what is in FILE: its form, its rows, lengths in tokens, and which rows cannot be used.

    With --model an example is shown as the model sees it: learnt tokens marked, and where each
    turn stops.
    """
    if (row is not None or packed is not None) and model is None:
        raise InputError(
            "a row in tokens needs a model to make them", do="add --model smollm2-135m-instruct"
        )
    if row is not None and packed is not None:
        raise InputError("--row and --packed show different things", do="give one of them")
    from ince.data.config import DataConfig, LossOn, ShapeChoice, Truncation
    from ince.data.inspect import inspect_file
    from ince.data.view import render
    from ince.recipe.progress import RunProgress

    config = DataConfig(
        train=file,
        format=cast(ShapeChoice, shape),
        max_length=max_length,
        loss_on=cast(LossOn, loss_on),
        truncation=cast(Truncation, truncation),
        system=system,
    )
    tokenizer = None if model is None else _tokenizer(model)
    if row is not None and tokenizer is not None:
        _show_row(file, row, config, tokenizer, as_json=as_json)
        return
    if packed is not None and tokenizer is not None:
        _show_packed(file, packed, config, tokenizer, as_json=as_json)
        return
    with RunProgress(progress_console()).bars() as report:
        found = inspect_file(
            file,
            tokenizer,
            config,
            progress=lambda done, total: report("reading rows", done, total),
        )
    if as_json:
        print_json(found.to_dict())
    else:
        result_console().print(render(found))
