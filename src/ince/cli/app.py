"""``ince``: the table of commands, and the one place where a failure becomes an exit code.

A command is a line of `COMMANDS` and a module with a click command in it. The module is
imported when its command is called, so that ``ince --help`` imports no torch and answers at
once. To add a command, add its line.

Exit codes: 0 done, 1 failed, 2 what the user gave, 3 a proof or check did not hold, 130 Ctrl-C.
"""

import errno
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import click

from ince.cli.output import print_error
from ince.errors import DiskFullError, InceError, InputError, InterruptedRunError, did_you_mean

__all__ = ["COMMANDS", "CommandEntry", "cli", "main"]

_INTERRUPTED = 130


@dataclass(frozen=True)
class CommandEntry:
    """Where a command lives, as ``module:attribute``, and what it does in a line."""

    target: str
    summary: str

    def load(self) -> click.Command:
        """Import the command."""
        module, _, attribute = self.target.partition(":")
        command: object = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


COMMANDS: Mapping[str, CommandEntry] = MappingProxyType(
    {
        "demo": CommandEntry(
            "ince.cli.demo:demo", "the whole journey on the packaged model, in minutes on a CPU"
        ),
        "plan": CommandEntry(
            "ince.cli.plan:plan", "will it fit, how long, how much: of a model or a recipe"
        ),
        "train": CommandEntry(
            "ince.cli.train:train", "run a recipe, or go on with a run that was cut off"
        ),
        "lr-find": CommandEntry(
            "ince.cli.lr_find:lr_find", "which learning rate a recipe should have"
        ),
        "sweep": CommandEntry(
            "ince.cli.sweep:sweep", "many settings of a recipe, the losers stopped early"
        ),
        "eval": CommandEntry(
            "ince.cli.evaluate:evaluate", "measure an adapter against its base, with intervals"
        ),
        "chat": CommandEntry("ince.cli.chat:chat", "talk to a model or an adapter"),
        "serve": CommandEntry(
            "ince.cli.serve:serve", "many adapters over one base, for OpenAI's clients"
        ),
        "merge": CommandEntry(
            "ince.cli.merge:merge", "adapter and base to one 16-bit model, with the parity proof"
        ),
        "quantize": CommandEntry(
            "ince.cli.quantize:quantize",
            "a model to a folder in 4 bits, which other tools read too",
        ),
        "inspect": CommandEntry(
            "ince.cli.inspect:inspect", "what an adapter is made of, and what two of them share"
        ),
        "data": CommandEntry("ince.cli.data:data", "look at data as the model will see them"),
        "registry": CommandEntry(
            "ince.cli.registry:registry",
            "adapters by content, under names, for tenants: what is served",
        ),
        "env": CommandEntry(
            "ince.cli.env:env", "what this machine offers, and which kernels run on it"
        ),
    }
)


class _LazyGroup(click.Group):
    """A group whose commands are imported when called; the list comes from the table alone."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return [*COMMANDS]

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002
        cmd_name: str,
    ) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        return None if entry is None else entry.load()

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise InputError(
                f"no such command: {args[0]}",
                expected=", ".join(COMMANDS),
                do=did_you_mean(args[0], COMMANDS) or "see: ince --help",
            )
        return super().resolve_command(ctx, args)

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002
        formatter: click.HelpFormatter,
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


def _version() -> str:
    try:
        return importlib.metadata.version("ince")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"ince {_version()}")
        ctx.exit()


@click.group(
    cls=_LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: ince demo. Every command has --help with an example.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and leave.",
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Fine-tune large language models with LoRA and QLoRA, and prove what came out."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _usage_error(error: click.ClickException) -> InputError:
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = "ince" if context is None else context.command_path
    message = error.format_message().rstrip(".")
    return InputError(message[:1].lower() + message[1:], where=path, do=f"see: {path} --help")


def _explain(error: BaseException) -> InceError:
    """The error as one of ince's own."""
    if isinstance(error, InceError):
        return error
    if isinstance(error, click.ClickException):
        return _usage_error(error)
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskFullError(
                "no space left on the device",
                where=error.filename,
                do="free some space and run the same command again",
            )
        if error.filename is not None:
            what = (error.strerror or type(error).__name__).lower()
            return InputError(f"cannot use this file: {what}", where=error.filename)
    # torch's own class of this name is not imported for a comparison.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return InceError(
            "out of memory",
            got=str(error) or None,
            do="use fewer tokens at a time (train.micro_batch_tokens, data.max_length), "
            "or a smaller batch size",
        )
    return InceError(
        "a fault in ince, not in what you gave",
        got=f"{type(error).__name__}: {error}",
        do="run the command again with --debug, and report what it shows",
    )


def _give_up_stdout() -> None:
    # The reader of a pipe left; Python would complain again when it flushes at exit.
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, sys.stdout.fileno())
    except (OSError, ValueError):  # a stand-in for stdout without a descriptor
        pass
    finally:
        os.close(null)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code.

    Args:
        argv: the arguments after the program's name; those of the process when None.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug, as_json = "--debug" in options, "--json" in options
    try:
        outcome: object = cli.main(arguments, prog_name="ince", standalone_mode=False)
        sys.stdout.flush()
        return outcome if isinstance(outcome, int) else 0
    except BrokenPipeError:
        _give_up_stdout()
        return 1
    except (KeyboardInterrupt, click.Abort) as stop:
        stopped = InterruptedRunError("stopped")
        stopped.__cause__ = stop
        print_error(stopped, as_json=as_json, debug=debug)
        return _INTERRUPTED
    except Exception as failure:
        error = _explain(failure)
        print_error(error, as_json=as_json, debug=debug, cause=failure)
        return error.exit_code
