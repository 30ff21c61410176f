"""``ince registry``: adapters by content, under names with a way back."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ince.cli.output import common_options, print_json, result_console
from ince.cli.registry_access import access
from ince.cli.registry_options import registry_option, tenant_option
from ince.errors import InputError, ProofError

if TYPE_CHECKING:
    from ince.registry import Alias, Registry

__all__ = ["registry"]


@click.group(invoke_without_command=True)
@click.pass_context
def registry(ctx: click.Context) -> None:
    """Keep adapters by content, under names, for tenants: what `ince serve` serves."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for each in access.commands.values():
    registry.add_command(each)


def _open(folder: Path, *, create: bool = False) -> "Registry":
    from ince.registry import Registry

    return Registry(folder, create=create)


def _alias(opened: "Registry", name: str, tenant: str) -> "Alias":
    return next(each for each in opened.names(tenant=tenant) if each.name == name)


def _print_alias(alias: "Alias", *, as_json: bool) -> None:
    if as_json:
        print_json(alias.to_dict())
        return
    text = f"{alias.name} is version {alias.number}: {alias.digest}"
    result_console().print(text, markup=False)


@registry.command(epilog="Example: ince registry put runs/turkish --name turkish")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--name", help="Give it this name; what had it before is where a rollback goes.")
@tenant_option("Whose it is; without one all tenants may share it.")
@click.option("--base-digest", help="Of the base's weights, where the folder does not say.")
@registry_option
@common_options
def put(
    adapter: Path,
    name: str | None,
    tenant: str,
    base_digest: str | None,
    folder: Path,
    as_json: bool,
) -> None:
    """Copy ADAPTER (a run or an adapter) into the registry, checked.

    Safetensors only. The registry is made when there is none. The same content is there
    once, whatever it is called.
    """
    if not adapter.exists():  # before a registry is made for it
        raise InputError("no such adapter folder", where=adapter, do="check the path")
    with _open(folder, create=True) as opened:
        digest = opened.put(adapter, name=name, tenant=tenant, base_digest=base_digest)
        entry = opened.entry(digest)
        alias = None if name is None else _alias(opened, name, tenant)
    if as_json:
        print_json({"adapter": entry.to_dict(), "name": None if alias is None else alias.to_dict()})
        return
    from ince.cli.registry_view import entry_lines

    out = result_console()
    for line in entry_lines(entry):
        out.print(line)
    if alias is not None:
        _print_alias(alias, as_json=False)


@registry.command("list", epilog="Example: ince registry list --tenant acme")
@click.option("--tenant", help="Only what this tenant put.")
@registry_option
@common_options
def list_adapters(tenant: str | None, folder: Path, as_json: bool) -> None:
    """List the adapters, oldest first, with their names."""
    with _open(folder) as opened:
        entries = opened.entries(tenant=tenant)
    if as_json:
        print_json({"adapters": [entry.to_dict() for entry in entries]})
        return
    from ince.cli.registry_view import entry_table, print_table

    print_table(entry_table(entries))


@registry.command(epilog="Example: ince registry show turkish")
@click.argument("adapter")
@tenant_option("Whose name it is.")
@registry_option
@common_options
def show(adapter: str, tenant: str, folder: Path, as_json: bool) -> None:
    """Show what is known of ADAPTER: a name, a digest, or how only one digest begins."""
    with _open(folder) as opened:
        digest = opened.find(adapter, tenant=tenant)
        entry, place = opened.entry(digest), opened.folder(digest)
    if as_json:
        print_json({"adapter": entry.to_dict(), "folder": str(place)})
        return
    from ince.cli.registry_view import entry_lines

    for line in entry_lines(entry, place):
        result_console().print(line)


@registry.command(epilog="Example: ince registry alias turkish 3f9c0a51")
@click.argument("name")
@click.argument("adapter")
@tenant_option("Whose name it is.")
@registry_option
@common_options
def alias(name: str, adapter: str, tenant: str, folder: Path, as_json: bool) -> None:
    """Let NAME stand for ADAPTER, which is here already: a name or a digest.

    A server takes it up at once: new requests get the new adapter, running ones end on theirs.
    """
    with _open(folder) as opened:
        opened.alias(name, opened.find(adapter, tenant=tenant), tenant=tenant)
        _print_alias(_alias(opened, name, tenant), as_json=as_json)


@registry.command(epilog="Example: ince registry rollback turkish")
@click.argument("name")
@tenant_option("Whose name it is.")
@registry_option
@common_options
def rollback(name: str, tenant: str, folder: Path, as_json: bool) -> None:
    """Let NAME stand for what it stood for before; a second time, for the one before that."""
    with _open(folder) as opened:
        opened.rollback(name, tenant=tenant)
        _print_alias(_alias(opened, name, tenant), as_json=as_json)


@registry.command(epilog="Example: ince registry history turkish")
@click.argument("name")
@tenant_option("Whose name it is.")
@registry_option
@common_options
def history(name: str, tenant: str, folder: Path, as_json: bool) -> None:
    """List what NAME stood for, newest first."""
    with _open(folder) as opened:
        versions = opened.history(name, tenant=tenant)
    if as_json:
        print_json({"name": name, "versions": [version.to_dict() for version in versions]})
        return
    from ince.cli.registry_view import history_table, print_table

    print_table(history_table(versions))


@registry.command(epilog="Example: ince registry remove turkish")
@click.argument("name")
@tenant_option("Whose name it is.")
@registry_option
@common_options
def remove(name: str, tenant: str, folder: Path, as_json: bool) -> None:
    """Take NAME away. The adapter itself stays until `ince registry gc`."""
    with _open(folder) as opened:
        digest = opened.remove(name, tenant=tenant)
    if as_json:
        print_json({"name": name, "digest": digest})
        return
    result_console().print(f"{name} is gone; it stood for {digest}", markup=False)


@registry.command(epilog="Example: ince registry gc --dry-run")
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
@click.option(
    "--keep",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Versions besides the current one that each name keeps for rollbacks.",
)
@click.option(
    "--min-age",
    type=click.IntRange(min=0),
    default=3600,
    show_default=True,
    help="Seconds for which an adapter that never had a name is left alone.",
)
@registry_option
@common_options
def gc(dry_run: bool, keep: int, min_age: int, folder: Path, as_json: bool) -> None:
    """Remove adapters that no name stands for, nor a rollback may go to.

    Also clears what processes that were killed have left half-made.
    """
    with _open(folder) as opened:
        done = opened.gc(dry_run=dry_run, keep=keep, min_age_seconds=min_age)
    if as_json:
        print_json({"dry_run": dry_run, **done.to_dict()})
        return
    from ince.cli.registry_view import collected_lines

    for line in collected_lines(done, dry_run=dry_run):
        result_console().print(line, markup=False)


@registry.command(epilog="Example: ince registry verify")
@registry_option
@common_options
def verify(folder: Path, as_json: bool) -> int:
    """Read everything and check it: every file, every name, the database and the audit log.

    Exit code 3 when something is not as it should be.
    """
    with _open(folder) as opened:
        found = opened.verify()
    if as_json:
        print_json(found.to_dict())
        return ProofError.exit_code if found.problems else 0
    from ince.cli.registry_view import verified_lines

    for line in verified_lines(found):
        result_console().print(line, markup=False)
    return ProofError.exit_code if found.problems else 0


@registry.command(epilog="Example: ince registry audit --last 20")
@click.option(
    "--last",
    type=click.IntRange(min=1, max=1_000_000),
    default=50,
    show_default=True,
    help="How many of the latest changes.",
)
@registry_option
@common_options
def audit(last: int, folder: Path, as_json: bool) -> None:
    """List the latest changes: when, who, what, and what was before and after."""
    with _open(folder) as opened:
        changes = opened.audit(last=last)
    if as_json:
        print_json({"changes": [change.to_dict() for change in changes]})
        return
    from ince.cli.registry_view import audit_table, print_table

    print_table(audit_table(changes))
