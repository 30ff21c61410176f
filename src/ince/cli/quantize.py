"""``ince quantize``: a model to a folder in 4 bits, which the field's tools read."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ince.cli.adapter_base import CONFIG_FILE
from ince.cli.output import common_options, print_json, progress_console, result_console
from ince.errors import InputError, InterruptedRunError, OutputError

if TYPE_CHECKING:
    from ince.models import ResolvedModel

__all__ = ["quantize"]

_BLOCKSIZES = ("32", "64", "128", "256", "512", "1024", "2048", "4096")
_DTYPES = ("bfloat16", "float16", "float32")


def _check_format(quant_type: str, file_format: str) -> None:
    if quant_type == "int4" and file_format == "bitsandbytes":
        raise InputError(
            "bitsandbytes has no INT4 format, so such a folder could not be read by anything",
            where="--quant-type",
            got=quant_type,
            expected="nf4 or fp4",
            do="use nf4, which is closer to the model at the same size; to compare INT4, load it "
            'into memory: ince.load_model(…, quantization=ince.NF4Config(quant_type="int4"))',
        )


def _check_is_model(text: str) -> None:
    """Refuse what is a folder here but no model, with what to do instead."""
    try:
        path = Path(text).expanduser()
        is_adapter = (path / CONFIG_FILE).is_file()
        is_run = (path / "run.json").is_file()
    except (OSError, ValueError, RuntimeError):  # no file could have this name
        return
    if is_run or is_adapter:
        raise InputError(
            f"this is {'a run' if is_run else 'an adapter'}, not a model",
            where=text,
            expected="a packaged name, a model folder, a GGUF file or a hub id",
            do=f"merge it into its base first: ince merge {text} --out MERGED",
        )


def _check_out(out: Path) -> None:
    """Before minutes are spent, not after."""
    if out.is_file():
        raise OutputError(
            "there is a file where the folder is to be written",
            where=out,
            do="choose another folder, or move the file away",
        )
    if out.is_dir() and any(out.iterdir()):
        raise OutputError(
            "the output folder is not empty",
            where=out,
            expected="a new or empty folder",
            do="choose another folder, or remove this one",
        )
    there = _nearest(out)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(
            "cannot write here: "
            + ("permission denied" if there.is_dir() else "this is a file, not a folder"),
            where=there,
            do="choose a folder that you may write to",
        )


def _nearest(path: Path) -> Path:
    """The path, or the folder above it that is there."""
    absolute = path.absolute()
    return next(each for each in (absolute, *absolute.parents) if each.exists())


def _check_apart(out: Path, model: "ResolvedModel") -> None:
    source = model.folder.resolve()
    if out.resolve().is_relative_to(source):
        raise OutputError(
            "the output folder is inside the model's own",
            where=out,
            got=f"the model is in {source}",
            do="choose a folder beside it",
        )


@click.command(
    epilog="Example: ince quantize smollm2-135m-instruct --out models/smollm2-nf4",
)
@click.argument("model")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the new model; it must be new or empty.",
)
@click.option(
    "--quant-type",
    type=click.Choice(["nf4", "fp4", "int4"]),
    default="nf4",
    show_default=True,
    help="The sixteen values of a weight.",
)
@click.option(
    "--blocksize",
    type=click.Choice(_BLOCKSIZES),
    default="64",
    show_default=True,
    help="Weights that share a scale.",
)
@click.option("--no-double-quant", is_flag=True, help="Keep the scales in 32 bits instead of 8.")
@click.option(
    "--scale-search",
    is_flag=True,
    help="Store the scale of least squared error of each block, not its largest magnitude.",
)
@click.option(
    "--quantize-head",
    is_flag=True,
    help="Pack the output head too, unless it shares its weight with the embedding.",
)
@click.option(
    "--skip",
    "skip_modules",
    metavar="NAME",
    multiple=True,
    help="A module to leave as it is, with all inside; may be given again.",
)
@click.option(
    "--compute-dtype",
    type=click.Choice(_DTYPES),
    default="bfloat16",
    show_default=True,
    help="Of the products, and of what is not packed.",
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["bitsandbytes"]),
    default="bitsandbytes",
    show_default=True,
    help="Layout of the files: that of transformers with bitsandbytes.",
)
@click.option("--revision", help="Branch, tag or commit of a model from the hub.")
@common_options
def quantize(
    model: str,
    out: Path,
    quant_type: str,
    blocksize: str,
    no_double_quant: bool,
    scale_search: bool,
    quantize_head: bool,
    skip_modules: tuple[str, ...],
    compute_dtype: str,
    file_format: str,
    revision: str | None,
    as_json: bool,
) -> None:
    """Write MODEL (a packaged name, a folder, a GGUF file or a hub id) to a folder in 4 bits.

    Weights stream from the source into the folder: memory holds a few of them at a time,
    whatever the model's size. ince, and transformers with bitsandbytes, load what was written.
    """
    _check_format(quant_type, file_format)
    _check_is_model(model)
    out = out.expanduser()
    _check_out(out)
    from ince.models import resolve
    from ince.models.opening import open_source
    from ince.models.quantized_folder import unfinished_folder, write_quantized
    from ince.publish import describe_quantized
    from ince.quant import NF4Config
    from ince.recipe.progress import RunProgress

    config = NF4Config.model_validate(
        {
            "quant_type": quant_type,
            "blocksize": int(blocksize),
            "double_quant": not no_double_quant,
            "scale_search": scale_search,
            "quantize_head": quantize_head,
            "skip_modules": skip_modules,
            "compute_dtype": compute_dtype,
        }
    )
    started = time.monotonic()
    with RunProgress(progress_console()).bars() as report:
        resolved = resolve(model, revision, convert=False, progress=report)
        _check_apart(out, resolved)
        source = open_source(resolved)
        try:
            write_quantized(source, out, config, dtype=config.torch_dtype, progress=report)
        except KeyboardInterrupt as stop:
            kept = unfinished_folder(out)
            raise InterruptedRunError(
                "stopped; no half-written file is left",
                where=out,
                do=f"give the same command again: it goes on after the files in {kept}"
                if kept.exists()
                else None,
            ) from stop
        found = describe_quantized(out, source)
    seconds = time.monotonic() - started
    source_bytes = sum(entry.num_bytes for entry in source.entries.values())
    if as_json:
        print_json(
            {
                "model": str(out),
                "source": resolved.name,
                "format": file_format,
                "quantization": config.model_dump(mode="json"),
                "source_bytes": source_bytes,
                "seconds": round(seconds, 3),
                "weights": found.to_dict(),
            }
        )
        return
    from ince.cli.quantized_view import quantized_lines

    stdout = result_console()
    for line in quantized_lines(found, out, source_bytes=source_bytes, seconds=seconds):
        stdout.print(line)
