"""The command line, ``ince``: one door, and a table of commands that load when they are called."""

from ince.cli.app import main

__all__ = ["main"]
