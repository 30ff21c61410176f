"""A conversation in the terminal: what was said, who answers, and the commands with a slash."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from ince.cli.chat_adapters import BASE, ChatAdapters
from ince.cli.output import print_error
from ince.errors import InceError, did_you_mean

if TYPE_CHECKING:
    from ince.data import Message
    from ince.serve.speak import AnswerOptions, Speaker

__all__ = ["COMMANDS", "Talk", "completions", "obey", "obey_or_explain", "say"]

COMMANDS = {
    "/help": "this list",
    "/adapter NAME": "let this adapter answer from now on; without NAME, list what there is",
    "/base": "switch the adapter off, or on again",
    "/reset": "forget what was said",
    "/system TEXT": "begin again with this system message; without TEXT, with none",
    "/quit": "leave (so does Ctrl-D)",
}
_PARTS = [name.partition(" ") for name in COMMANDS]


@dataclass
class Talk:
    """A conversation.

    Attributes:
        speaker: that answers.
        adapters: to choose from.
        options: of each answer; the seed grows by one with each.
        system: the system message.
        name: of the adapter that answers; None for the base.
        before: of the adapter that answered before the base did.
        ready: folders of the adapters that have answered, by their names.
        messages: what was said since the last reset.
        turns: everything that was asked, with who answered what.
    """

    speaker: "Speaker"
    adapters: ChatAdapters
    options: "AnswerOptions"
    system: str | None = None
    name: str | None = None
    before: str | None = None
    ready: dict[str, Path] = field(default_factory=dict)
    messages: list["Message"] = field(default_factory=list)
    turns: list[dict[str, str | None]] = field(default_factory=list)

    @property
    def prompt(self) -> str:
        """What a person's line begins with: who will answer it, where that is a question."""
        return f"{self.name or BASE} › " if self.adapters else "› "

    def reset(self) -> None:
        """Forget what was said; the system message stays."""
        self.messages = []

    def switch(self, name: str | None) -> None:
        """Let another adapter answer; it is loaded now, unless it is.

        Raises:
            InputError: there is none of this name.
            InceError: it cannot be loaded; the one before goes on.
        """
        if name is not None:
            folder = self.adapters.folder(name)
            self.speaker.load(folder)
            self.ready[name] = folder
        elif self.name is not None:
            self.before = self.name
        self.name = name

    def answer(self, text: str) -> Iterator[str]:
        """Yield the answer in pieces. What was heard so far is kept when it is cut short."""
        from ince.data import Message

        asked = [*self.messages, Message("user", text)]
        opening = [] if self.system is None else [Message("system", self.system)]
        pieces = self.speaker.answer(
            [*opening, *asked],
            None if self.name is None else self.ready[self.name],
            replace(self.options, seed=self.options.seed + len(self.turns)),
        )
        heard: list[str] = []
        try:
            for piece in pieces:
                heard.append(piece)
                yield piece
        finally:
            # Closed by whom it is written for, and at once: the answer ends in the engine.
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
            answer = "".join(heard).strip()
            if answer:
                self.messages = [*asked, Message("assistant", answer)]
            self.turns.append({"user": text, "assistant": answer, "adapter": self.name})


def say(talk: Talk, text: str) -> None:
    """Stream one answer to stdout."""
    with closing(talk.answer(text)) as pieces:  # pyright: ignore[reportArgumentType]
        for piece in pieces:
            click.echo(piece, nl=False)
            sys.stdout.flush()
    click.echo()


def obey(talk: Talk, line: str, console: Console) -> bool:
    """Do what a line that begins with a slash says.

    Returns:
        False to end the conversation.

    Raises:
        InceError: the adapter that was asked for cannot answer.
    """
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
    elif command == "/adapter" and not rest.strip():
        _list_adapters(talk, console)
    elif command == "/adapter":
        wanted = rest.strip()
        _switch(talk, None if wanted == BASE else wanted, console)
    elif command == "/base":
        if talk.name is None and talk.before is None:
            console.print("there is no adapter to switch off")
        else:
            _switch(talk, talk.before if talk.name is None else None, console)
    else:
        _help(command, console)
    return True


def obey_or_explain(talk: Talk, line: str, console: Console) -> bool:
    """`obey` for a person, who reads what went wrong and goes on."""
    try:
        return obey(talk, line, console)
    except InceError as error:
        print_error(error)
    except OSError as error:
        console.print(f"cannot be read: {error}", markup=False)
    except KeyboardInterrupt:
        console.print("stopped")
    if talk.adapters:
        console.print(f"{talk.name or BASE} goes on", markup=False)
    return True


def completions(before: str, word: str, names: Sequence[str]) -> list[str]:
    """What a word of a line may become.

    Args:
        before: the line before it.
        word: as far as it is written.
        names: of adapters.
    """
    if not before.strip():
        # Those that take something wait for it.
        possible = [f"{name} " if rest else name for name, _, rest in _PARTS]
        return [each for each in possible if word.startswith("/") and each.startswith(word)]
    if before.split() == ["/adapter"]:
        return [each for each in [*names, BASE] if each.startswith(word)]
    return []


def _switch(talk: Talk, name: str | None, console: Console) -> None:
    talk.switch(name)
    console.print("the base answers" if name is None else f"{name} answers", markup=False)


def _list_adapters(talk: Talk, console: Console) -> None:
    names = talk.adapters.names()
    if not names:
        console.print("there are no adapters: start with --adapter, --adapters or --registry")
        return
    width = max(len(name) for name in [*names, BASE])
    for name in names:
        mark = "›" if name == talk.name else " "
        try:
            where = str(talk.adapters.folder(name))
        except InceError as error:
            where = error.what
        console.print(f"{mark} {name:<{width}}  {where}", markup=False)
    console.print(f"{'›' if talk.name is None else ' '} {BASE}")


def _help(command: str, console: Console) -> None:
    if command != "/help":
        near = did_you_mean(command, [name for name, _, _ in _PARTS])
        console.print(f"no such command: {command}" + (f"; {near}" if near else ""), markup=False)
    width = max(len(name) for name in COMMANDS)
    for name, meaning in COMMANDS.items():
        console.print(f"  {name:<{width}}  {meaning}", markup=False)
