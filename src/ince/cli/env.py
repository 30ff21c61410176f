"""``ince env``: what this machine offers, and which kernels run on it."""

import click

from ince.cli.output import common_options, print_json, result_console

__all__ = ["env"]

# Where no terminal folds lines, a table shall not either.
_PIPE_WIDTH = 1_000


@click.command(epilog="Example: ince env --json")
@common_options
def env(as_json: bool) -> None:
    """Show what this machine offers: devices, kernels in use, memory, cache and versions.

    Where slower kernels run than there could be, it says why. What cannot be found out is
    "unknown" with the reason (in JSON null, and the reason under "unknown"), and the command
    succeeds. Environment variables and credentials are not shown.
    """
    from ince.environment import read_environment

    found = read_environment()
    if as_json:
        print_json(found.to_dict())
        return
    from ince.report.environment_terminal import environment_lines

    out = result_console()
    if not out.is_terminal:
        out.width = _PIPE_WIDTH
    for line in environment_lines(found):
        out.print(line)
