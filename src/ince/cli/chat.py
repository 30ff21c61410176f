"""``ince chat``: talk to a model and its adapters, on a terminal or through a pipe."""

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ince.cli.chat_adapters import ChatAdapters
from ince.cli.chat_talk import Talk, completions, obey, obey_or_explain, say
from ince.cli.output import common_options, print_error, print_json, progress_console
from ince.cli.target import QuantizeChoice, find_target, load_target
from ince.errors import AdapterError, InceError, InputError

__all__ = ["chat"]

_DEFAULT_MODEL = "smollm2-135m-instruct"


def _read_line(prompt: str, console: Console) -> str | None:
    """A line from a person, or None at the end."""
    try:
        if sys.stdout.isatty():
            return input(prompt)
        # Results alone go to stdout, so the prompt does not.
        console.print(prompt, end="", markup=False)
        return input()
    except EOFError:
        return None


@contextmanager
def _line_editing(talk: Talk) -> Iterator[None]:
    """Give input() editing, a history and completion by Tab, on systems that have it."""
    try:
        readline: Any = importlib.import_module("readline")
    except ImportError:
        yield
        return

    def complete(word: str, number: int) -> str | None:
        try:
            before = readline.get_line_buffer()[: readline.get_begidx()]
            found = completions(before, word, talk.adapters.names())
        except (InceError, OSError):
            return None  # a key that is pressed is no moment for an error
        return found[number] if number < len(found) else None

    old, delimiters = readline.get_completer(), readline.get_completer_delims()
    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    is_libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
    try:
        yield
    finally:
        readline.set_completer(old)
        readline.set_completer_delims(delimiters)


def _converse(talk: Talk, console: Console) -> None:
    """Talk with a person until they leave."""
    console.print("/help lists commands, Ctrl-D leaves, Ctrl-C cuts an answer short")
    while (line := _read_line(talk.prompt, console)) is not None:
        text = line.strip()
        if text.startswith("/"):
            if not obey_or_explain(talk, text, console):
                return
        elif text:
            try:
                say(talk, text)
            except KeyboardInterrupt:
                click.echo()
            except InceError as error:
                if isinstance(error, InputError) and not isinstance(error, AdapterError):
                    console.print(f"{error.what}: /reset begins again", markup=False)
                    talk.reset()
                else:
                    print_error(error)
    console.print()


def _lines(prompt: str | None) -> Iterator[str]:
    """What is asked without a person: the one prompt, or the lines of stdin."""
    if prompt is not None:
        yield prompt
        return
    for line in sys.stdin:
        if line.strip():
            yield line.strip()


def _answer_lines(talk: Talk, prompt: str | None, console: Console, *, as_json: bool) -> None:
    for text in _lines(prompt):
        if prompt is None and text.startswith("/"):
            if not obey(talk, text, console):
                break
        elif as_json:
            for _ in talk.answer(text):
                pass
        else:
            say(talk, text)


@click.command(
    epilog='Example: ince chat runs/turkish --prompt "Merhaba!"; '
    "several to choose from: ince chat smollm2-135m-instruct --adapters adapters",
)
@click.argument("target", default=_DEFAULT_MODEL)
@click.option("--base", "base_only", is_flag=True, help="Let the base answer, as it was before.")
@click.option("--base-model", help="The adapter's base, when it is not where the adapter says.")
@click.option(
    "--adapter",
    "named",
    multiple=True,
    metavar="[NAME=]PATH",
    help="An adapter or run to choose from; more than once for several.",
)
@click.option(
    "--adapters",
    "root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of adapters to choose from: each folder in it is one, under its own name.",
)
@click.option(
    "--registry",
    "registry_folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Registry of adapters to choose from.",
)
@click.option("--prompt", help="Ask this, print the answer, and leave.")
@click.option("--system", help="System message.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Length at which an answer is cut.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="0 takes the likeliest token; 1 draws as the model would.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=1.0,
    show_default=True,
    help="Draw from the likeliest tokens that have this probability together.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is drawn.")
@click.option(
    "--quantize",
    type=click.Choice(["nf4", "none"]),
    help="Bits of the base; of a run as it was trained, else 16.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@common_options
def chat(
    target: str,
    base_only: bool,
    base_model: str | None,
    named: tuple[str, ...],
    root: Path | None,
    registry_folder: Path | None,
    prompt: str | None,
    system: str | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    quantize: QuantizeChoice | None,
    device: str,
    as_json: bool,
) -> None:
    """Talk to TARGET: a run, an adapter or a model (the packaged one when not given).

    On a terminal the answers appear as they are written; /help lists commands, and /adapter NAME
    lets another adapter answer. From a pipe each line is a turn of one conversation. With --json
    the turns come as one object.
    """
    person = prompt is None and sys.stdin.isatty()
    if person and as_json:
        raise InputError("--json is for programs", do="add --prompt TEXT, or pipe lines in")
    if prompt is not None and not prompt.strip():
        raise InputError("the prompt is empty", do="give --prompt some text")
    console = progress_console()
    found = find_target(target, base=base_model, quantize=quantize)
    if base_only and found.trained_from is not None:
        found = found.trained_from
    with ExitStack() as stack:
        registry = None
        if registry_folder is not None:
            from ince.registry import Registry

            registry = stack.enter_context(Registry(registry_folder))
        adapters = ChatAdapters.of(found, named, root, registry)
        # Whoever names an adapter wants to hear it.
        first = next(iter(adapters.named), None)
        folder = None if first is None else adapters.named[first]
        loaded = load_target(replace(found, adapter=None), console, device=device)
        _keep_quiet(stack)

        from ince.serve.speak import AnswerOptions, open_speaker

        speaker = open_speaker(
            loaded.model,
            loaded.tokenizer,
            first=folder,
            has_adapters=bool(adapters),
            remark=lambda line: console.print(line, markup=False),
        )
        stack.callback(speaker.close)
        talk = Talk(
            speaker,
            adapters,
            AnswerOptions(max_new_tokens, temperature, top_p, seed),
            system=system,
            name=None if base_only else first,
            before=first,
            ready={} if first is None or folder is None else {first: folder},
        )
        if person:
            stack.enter_context(_line_editing(talk))
            _converse(talk, console)
            return
        _answer_lines(talk, prompt, console, as_json=as_json)
        if as_json:
            print_json(
                {
                    "model": found.base,
                    "adapter": None if folder is None or base_only else str(folder),
                    "turns": talk.turns,
                }
            )


def _keep_quiet(stack: ExitStack) -> None:
    """What the engine would write into a log comes as an error here."""
    logger, nobody = logging.getLogger("ince.serve"), logging.NullHandler()
    logger.addHandler(nobody)
    stack.callback(logger.removeHandler, nobody)
