"""``ince chat``: talk to a model or an adapter, on a terminal or through a pipe."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click
from rich.console import Console

from ince.cli.output import common_options, print_json, progress_console
from ince.cli.target import Loaded, QuantizeChoice, find_target, load_target
from ince.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from ince.data import Message

__all__ = ["chat"]

_DEFAULT_MODEL = "smollm2-135m-instruct"

_COMMANDS = {
    "/help": "this list",
    "/reset": "forget what was said",
    "/system TEXT": "begin again with this system message; without TEXT, with none",
    "/base": "switch the adapter off, or on again",
    "/quit": "leave (so does Ctrl-D)",
}


@dataclass
class _Talk:
    """A conversation with a loaded model."""

    loaded: Loaded
    system: str | None
    base_only: bool
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    messages: list["Message"] = field(default_factory=list)
    turns: list[dict[str, str]] = field(default_factory=list)

    def reset(self) -> None:
        """Forget what was said; the system message stays."""
        self.messages = []

    def _adapter(self) -> AbstractContextManager[None]:
        if self.base_only and self.loaded.adapted is not None:
            return self.loaded.adapted.disable_adapter()
        return nullcontext()

    def answer(self, text: str) -> Iterator[str]:
        """Yield the answer in pieces. What was heard so far is kept when it is cut short."""
        from ince.data import Message
        from ince.infer import stream

        asked = [*self.messages, Message("user", text)]
        opening = [] if self.system is None else [Message("system", self.system)]
        heard: list[str] = []
        with self._adapter():
            pieces = stream(
                self.loaded.model,
                self.loaded.tokenizer,
                [*opening, *asked],
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                seed=self.seed + len(self.turns),
            )
            try:
                for piece in pieces:
                    heard.append(piece)
                    yield piece
            finally:
                close = getattr(pieces, "close", None)
                if close is not None:
                    close()
                answer = "".join(heard).strip()
                if answer:
                    self.messages = [*asked, Message("assistant", answer)]
                self.turns.append({"user": text, "assistant": answer})


def _obey(talk: _Talk, line: str, console: Console) -> bool:
    """Do what a line that begins with a slash says; False ends the conversation."""
    command, _, rest = line.partition(" ")
    if command in ("/quit", "/exit"):
        return False
    if command == "/reset":
        talk.reset()
        console.print("what was said is forgotten")
    elif command == "/system":
        talk.system = rest.strip() or None
        talk.reset()
        console.print("a new conversation, " + ("with" if talk.system else "without") + " system")
    elif command == "/base":
        if talk.loaded.adapted is None:
            console.print("there is no adapter to switch off")
        else:
            talk.base_only = not talk.base_only
            console.print("the base answers" if talk.base_only else "the adapter answers")
    else:
        if command != "/help":
            near = did_you_mean(command, [name.split()[0] for name in _COMMANDS])
            console.print(
                f"no such command: {command}" + (f"; {near}" if near else ""), markup=False
            )
        for name, meaning in _COMMANDS.items():
            console.print(f"  {name:<13} {meaning}", markup=False)
    return True


def _say(talk: _Talk, text: str) -> None:
    """Stream one answer to stdout."""
    with closing(talk.answer(text)) as pieces:  # pyright: ignore[reportArgumentType]
        for piece in pieces:
            click.echo(piece, nl=False)
            sys.stdout.flush()
    click.echo()


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


def _converse(talk: _Talk, console: Console) -> None:
    """Talk with a person until they leave."""
    # Its import gives input() line editing and a history, on systems that have it.
    with suppress(ImportError):
        importlib.import_module("readline")
    console.print("/help lists commands, Ctrl-D leaves, Ctrl-C cuts an answer short")
    while (line := _read_line("› ", console)) is not None:
        text = line.strip()
        if text.startswith("/"):
            if not _obey(talk, text, console):
                return
        elif text:
            try:
                _say(talk, text)
            except KeyboardInterrupt:
                click.echo()
            except InputError as error:
                console.print(f"{error.what}: /reset begins again", markup=False)
                talk.reset()
    console.print()


def _lines(prompt: str | None) -> Iterator[str]:
    """What is asked without a person: the one prompt, or the lines of stdin."""
    if prompt is not None:
        yield prompt
        return
    for line in sys.stdin:
        if line.strip():
            yield line.strip()


def _answer_lines(talk: _Talk, prompt: str | None, console: Console, *, as_json: bool) -> None:
    for text in _lines(prompt):
        if prompt is None and text.startswith("/"):
            if not _obey(talk, text, console):
                break
        elif as_json:
            for _ in talk.answer(text):
                pass
        else:
            _say(talk, text)


@click.command(
    epilog='Example: ince chat runs/turkish --prompt "Merhaba!"',
)
@click.argument("target", default=_DEFAULT_MODEL)
@click.option("--base", "base_only", is_flag=True, help="Let the base answer, as it was before.")
@click.option("--base-model", help="The adapter's base, when it is not where the adapter says.")
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

    On a terminal the answers appear as they are written; /help lists commands. From a pipe
    each line is a turn of one conversation. With --json the turns come as one object.
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
    talk = _Talk(
        loaded=load_target(found, console, device=device),
        system=system,
        base_only=base_only,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    if person:
        _converse(talk, console)
        return
    _answer_lines(talk, prompt, console, as_json=as_json)
    if as_json:
        print_json(
            {
                "model": found.base,
                "adapter": None if found.adapter is None or base_only else str(found.adapter),
                "turns": talk.turns,
            }
        )
