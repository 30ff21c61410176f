"""``ince registry tenant`` and ``ince registry key``: who may use what, and with which keys."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ince.cli.output import common_options, print_json, progress_console, result_console
from ince.cli.registry_options import registry_option
from ince.errors import InputError

if TYPE_CHECKING:
    from ince.registry import Registry, Tenant

__all__ = ["access"]

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])
_NONE = "none"


@click.group()
def access() -> None:
    """Both groups, for ``ince registry``."""


@access.group(invoke_without_command=True)
@click.pass_context
def tenant(ctx: click.Context) -> None:
    """Tenants: their limits, and which adapters they may use."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@access.group(invoke_without_command=True)
@click.pass_context
def key(ctx: click.Context) -> None:
    """API keys of tenants."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _open(folder: Path) -> "Registry":
    from ince.registry import Registry

    return Registry(folder)


def _count(text: str) -> int:
    return int(text.replace("_", "").replace(",", ""))


def _bytes(text: str) -> int:
    from ince.units import parse_bytes

    return parse_bytes(text)


def _limit(read: Callable[[str], int], name: str, text: str) -> Any:
    """An option for a number or ``none``, which stays as it is until `_given`."""

    def convert(_context: click.Context, _option: click.Parameter, value: str | None) -> Any:
        if value is None or value == _NONE:
            return value
        try:
            return read(value)
        except ValueError:
            raise click.BadParameter(f"{value!r} is neither a whole number nor {_NONE}") from None

    return click.option(name, callback=convert, metavar=f"N|{_NONE}", help=text)


def _limit_options(command: _Decorated) -> _Decorated:
    options = (
        _limit(_count, "--requests-per-minute", "Requests a minute."),
        _limit(_count, "--tokens-per-minute", "Tokens a minute."),
        _limit(_count, "--max-concurrent", "Requests at once."),
        _limit(_count, "--max-adapters", "Adapters that it may keep."),
        _limit(_bytes, "--max-bytes", "Bytes that its adapters may take, such as 2GiB."),
        click.option(
            "--weight", type=float, help="Of its share where tenants compete; 1 at first."
        ),
        click.option(
            "--admin/--no-admin",
            "is_admin",
            default=None,
            help="May load and publish adapters while serving, and use all shared ones.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _given(limits: dict[str, Any]) -> dict[str, Any]:
    """The limits that were given, ``none`` as None."""
    return {
        name: None if value == _NONE else value
        for name, value in limits.items()
        if value is not None
    }


def _print_tenant(found: "Tenant", *, as_json: bool) -> None:
    if as_json:
        print_json({"tenant": found.to_dict()})
        return
    from ince.cli.registry_view import print_table, tenant_table

    print_table(tenant_table([found]))


@tenant.command(
    "add", epilog="Example: ince registry tenant add acme --allow turkish --tokens-per-minute 60000"
)
@click.argument("name")
@click.option(
    "--allow",
    "patterns",
    multiple=True,
    help="A shared name that it may use; team/* all that begin so, * all. May be given again.",
)
@_limit_options
@registry_option
@common_options
def add_tenant(
    name: str, patterns: tuple[str, ...], folder: Path, as_json: bool, **limits: Any
) -> None:
    """Add tenant NAME. It has no key yet: `ince registry key add NAME` makes one."""
    with _open(folder) as opened:
        found = opened.tenants.add_tenant(name, allow=patterns, **_given(limits))
    _print_tenant(found, as_json=as_json)


@tenant.command("list", epilog="Example: ince registry tenant list")
@registry_option
@common_options
def list_tenants(folder: Path, as_json: bool) -> None:
    """List the tenants, with what they may use."""
    with _open(folder) as opened:
        found = opened.tenants.tenants()
    if as_json:
        print_json({"tenants": [each.to_dict() for each in found]})
        return
    from ince.cli.registry_view import print_table, tenant_table

    print_table(tenant_table(found))


@tenant.command("change", epilog="Example: ince registry tenant change acme --max-concurrent none")
@click.argument("name")
@_limit_options
@registry_option
@common_options
def change_tenant(name: str, folder: Path, as_json: bool, **limits: Any) -> None:
    """Change limits of tenant NAME; `none` takes one away. Others stay as they are."""
    changes = _given(limits)
    if not changes:
        raise InputError(
            "nothing to change was given",
            do="give a limit, such as --max-concurrent 4; see: ince registry tenant change --help",
        )
    with _open(folder) as opened:
        found = opened.tenants.change_tenant(name, changes)
    _print_tenant(found, as_json=as_json)


@tenant.command("remove", epilog="Example: ince registry tenant remove acme")
@click.argument("name")
@registry_option
@common_options
def remove_tenant(name: str, folder: Path, as_json: bool) -> None:
    """Remove tenant NAME with its keys and usage; its names must be removed before."""
    with _open(folder) as opened:
        opened.tenants.remove_tenant(name)
    if as_json:
        print_json({"removed": name})
        return
    result_console().print(f"{name} is gone", markup=False)


@tenant.command("allow", epilog="Example: ince registry tenant allow acme 'team/*'")
@click.argument("name")
@click.argument("pattern")
@registry_option
@common_options
def allow(name: str, pattern: str, folder: Path, as_json: bool) -> None:
    """Let tenant NAME use shared adapters: a name, team/* or *. Its own it may use anyway."""
    with _open(folder) as opened:
        found = opened.tenants.allow(name, pattern)
    _print_tenant(found, as_json=as_json)


@tenant.command("disallow", epilog="Example: ince registry tenant disallow acme turkish")
@click.argument("name")
@click.argument("pattern")
@registry_option
@common_options
def disallow(name: str, pattern: str, folder: Path, as_json: bool) -> None:
    """Take back from tenant NAME what `allow` gave."""
    with _open(folder) as opened:
        found = opened.tenants.disallow(name, pattern)
    _print_tenant(found, as_json=as_json)


@tenant.command("usage", epilog="Example: ince registry tenant usage acme --since 2026-01-01")
@click.argument("name", required=False)
@click.option(
    "--since", type=click.DateTime(["%Y-%m-%d"]), help="From this day (UTC) on: YYYY-MM-DD."
)
@registry_option
@common_options
def usage(name: str | None, since: Any, folder: Path, as_json: bool) -> None:
    """Show what tenant NAME used, or all, by day and adapter."""
    day = None if since is None else since.date().isoformat()
    with _open(folder) as opened:
        if name is not None:
            opened.tenants.tenant(name)
        used = opened.tenants.usage(name, since=day)
    if as_json:
        print_json({"usage": [each.to_dict() for each in used]})
        return
    from ince.cli.registry_view import print_table, usage_table

    print_table(usage_table(used))


@key.command("add", epilog="Example: ince registry key add acme --label laptop")
@click.argument("tenant")
@click.option("--label", default="", help="To tell its keys apart.")
@registry_option
@common_options
def add_key(tenant: str, label: str, folder: Path, as_json: bool) -> None:
    """Make a key for TENANT, and show it: this once, since only a hash is kept."""
    from ince.registry import key_id

    with _open(folder) as opened:
        secret = opened.tenants.add_key(tenant, label=label)
    if as_json:
        print_json({"tenant": tenant, "id": key_id(secret), "key": secret})
        return
    result_console().print(secret, markup=False, soft_wrap=True)
    progress_console().print("keep it: it is not shown again", style="dim")


@key.command("list", epilog="Example: ince registry key list acme")
@click.argument("tenant", required=False)
@registry_option
@common_options
def list_keys(tenant: str | None, folder: Path, as_json: bool) -> None:
    """List the keys of TENANT, or all: ids and labels, never the keys."""
    with _open(folder) as opened:
        if tenant is not None:
            opened.tenants.tenant(tenant)
        found = opened.tenants.keys(tenant=tenant)
    if as_json:
        print_json({"keys": [each.to_dict() for each in found]})
        return
    from ince.cli.registry_view import key_table, print_table

    print_table(key_table(found))


@key.command("revoke", epilog="Example: ince registry key revoke 3f9c0a51b7d2e846")
@click.argument("key")
@registry_option
@common_options
def revoke_key(key: str, folder: Path, as_json: bool) -> None:
    """End a key at once, by its id. It stays in the list, as revoked."""
    with _open(folder) as opened:
        found = opened.tenants.revoke_key(key)
    if as_json:
        print_json({"key": found.to_dict()})
        return
    result_console().print(f"{found.id} of {found.tenant} is revoked", markup=False)
