"""``ince serve``: one base, many adapters, over OpenAI's routes."""

import importlib
import ipaddress
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from ince.cli.output import common_options, progress_console
from ince.cli.target import QuantizeChoice, find_target, load_target
from ince.errors import InputError
from ince.units import parse_bytes

if TYPE_CHECKING:
    from ince.registry import Registry

__all__ = ["serve"]

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _bytes(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    return None if value is None else parse_bytes(value)


def _check_keys(registry: "Registry | None", host: str) -> bool:
    """Whether keys are asked for.

    Raises:
        InputError: there are none, and others than this machine could ask.
    """
    has_keys = registry is not None and bool(registry.tenants.tenants())
    if not has_keys and not _is_loopback(host):
        raise InputError(
            "a server without keys listens on this machine alone",
            where="--host",
            got=host,
            do="add tenants and keys: ince registry tenant add NAME, ince registry key add NAME, "
            "and serve with --registry; or leave --host out",
        )
    return has_keys


def _require_packages() -> None:
    try:
        for package in ("fastapi", "prometheus_client", "uvicorn"):
            importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise InputError(
            "serving needs packages that are not installed",
            got=error.name,
            do="pip install 'ince[serve]'",
        ) from error


class _Beginning:
    """Until somebody is served, SIGTERM and Ctrl-C end the command without an error."""

    def __init__(self) -> None:
        self.is_over = False
        self._is_ended = False

    def end(self, *_: object) -> None:
        """The handler of both signals."""
        self._is_ended = True
        raise KeyboardInterrupt

    def go_on(self) -> None:
        """Raise what a library swallowed: many are at work meanwhile, and some catch anything."""
        if self._is_ended:
            raise KeyboardInterrupt


@contextmanager
def _ended_by_signals(console: Console) -> Iterator[_Beginning]:
    """Nobody is served yet, so nothing is lost. Afterwards a server listens to signals."""
    beginning = _Beginning()
    is_main = threading.current_thread() is threading.main_thread()
    signals = (signal.SIGTERM, signal.SIGINT) if is_main else ()
    before = {each: signal.signal(each, beginning.end) for each in signals}
    try:
        yield beginning
    except KeyboardInterrupt:
        if beginning.is_over:
            raise
        console.print("stopped before anybody was served")
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _log_to_stderr(*, quiet: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("ince", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING if quiet or name != "ince" else logging.INFO)
        logger.propagate = False


def _raise_file_limit() -> None:
    """Let as many clients connect as the system allows."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@click.command(epilog="Example: ince serve smollm2-135m-instruct --registry registry")
@click.argument("base")
@click.option(
    "--adapters",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of adapters: each folder in it is one, under its own name. With --registry, "
    "where adapters may be loaded from while serving.",
)
@click.option(
    "--registry",
    "registry_folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Registry of adapters, tenants and keys.",
)
@click.option("--name", help="What requests call the base; BASE as it stands when not given.")
@click.option("--quantize", type=click.Choice(["nf4", "none"]), help="Bits of the base, else 16.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
    default="auto",
    show_default=True,
    help="Of what is not quantized; auto: bfloat16, or float32 where that is only emulated.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any."
)
@click.option(
    "--allow-host",
    "allowed",
    multiple=True,
    help="Another name that this server goes by; more than once for several.",
)
@click.option(
    "--slots",
    type=click.IntRange(1, 4096),
    default=32,
    show_default=True,
    help="Adapters on the device at once.",
)
@click.option(
    "--adapter-memory", default="1GiB", show_default=True, callback=_bytes, help="Of adapters."
)
@click.option(
    "--kv-memory", callback=_bytes, help="Of keys and values; a share of what is free if not given."
)
@click.option(
    "--max-batch-tokens",
    type=click.IntRange(min=2),
    default=512,
    show_default=True,
    help="Of one step.",
)
@click.option(
    "--max-running",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Answers written at once.",
)
@click.option(
    "--max-waiting",
    type=click.IntRange(min=0),
    default=1024,
    show_default=True,
    help="Requests that may wait; more get 429.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds that a request may take.",
)
@click.option(
    "--drain-seconds",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="That what runs may take after SIGTERM.",
)
@click.option("--quiet", is_flag=True, help="No line for each request.")
@common_options
def serve(
    base: str,
    adapters: Path | None,
    registry_folder: Path | None,
    name: str | None,
    quantize: QuantizeChoice | None,
    dtype: str,
    device: str,
    host: str,
    port: int,
    allowed: tuple[str, ...],
    slots: int,
    adapter_memory: int,
    kv_memory: int | None,
    max_batch_tokens: int,
    max_running: int,
    max_waiting: int,
    timeout: float,
    drain_seconds: float,
    quiet: bool,
    as_json: bool,
) -> int:
    """Serve BASE, and every adapter on it, over OpenAI's routes.

    The `model` of a request names an adapter, or the base. Tenants and keys come from the
    registry; without any the server answers this machine alone. SIGTERM finishes what runs and
    ends with 0; a second one cuts what runs, and ends with 1 where something did.
    """
    console = progress_console()
    has_cut = False
    with ExitStack() as stack:
        beginning = stack.enter_context(_ended_by_signals(console))
        _require_packages()
        from ince.registry import Registry
        from ince.serve.http import FolderDirectory, HttpSettings, create_app
        from ince.serve.http.registry_view import RegistryShelf, RegistryTenants, RegistryView
        from ince.serve.http.server import bind, make_server
        from ince.serve.opening import opened

        registry = None
        if registry_folder is not None:
            registry = stack.enter_context(Registry(registry_folder))
        has_keys = _check_keys(registry, host)
        # Before minutes are spent on the model, not after.
        socket = stack.enter_context(bind(host, port))
        found = find_target(base, quantize=quantize)
        if found.adapter is not None:
            raise InputError(
                "what is served is a base; adapters come from --adapters or --registry",
                got=base,
                do=f"ince serve {found.base} --adapters {found.adapter.parent}",
            )
        base_name = name or base
        folder = FolderDirectory(adapters)
        if registry is None:
            folder.scan()
        loaded = load_target(replace(found, compute_dtype=dtype), console, device=device)
        beginning.go_on()
        source = folder if registry is None else registry
        running = stack.enter_context(
            opened(
                loaded.model,
                loaded.tokenizer,
                source=None if registry is None and adapters is None else source,
                num_slots=slots,
                adapter_bytes=adapter_memory,
                kv_bytes=kv_memory,
                max_batch_tokens=max_batch_tokens,
                max_running=max_running,
                max_waiting=max_waiting,
            )
        )
        engine, tiers = running.engine, running.tiers
        embeddings: Any = loaded.model.get_input_embeddings()
        settings = HttpSettings(
            base_name=base_name,
            context_length=min(engine.context_length, engine.stats().kv_blocks_total * 16),
            num_tokens=int(embeddings.weight.shape[0]),
            timeout_seconds=timeout,
            hosts=_hosts(host, allowed, has_keys=has_keys),
        )
        app = create_app(
            engine,
            loaded.tokenizer,
            folder if registry is None else RegistryView(registry, base_name),
            None if registry is None else RegistryTenants(registry, wants_keys=has_keys),
            settings,
            shelf=None if tiers is None else RegistryShelf(registry) if registry else folder,
            loader=tiers,
            adapters_folder=adapters,
            num_slots=0 if tiers is None else slots,
        )
        _log_to_stderr(quiet=quiet)
        _raise_file_limit()
        server = make_server(app, engine, drain_seconds=drain_seconds)
        name_shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
        shown = f"http://{name_shown}:{socket.getsockname()[1]}"

        def say_ready() -> None:
            beginning.is_over = True
            _say_ready(shown, console, base_name, as_json=as_json)

        server.on_ready = say_ready
        beginning.go_on()
        server.run(sockets=[socket])
        has_cut = server.has_cut
    return 1 if has_cut else 0


def _hosts(host: str, allowed: tuple[str, ...], *, has_keys: bool) -> frozenset[str]:
    """Names that a request may call this server by; empty for any."""
    if allowed or not has_keys:
        return frozenset((*_LOOPBACK_NAMES, host, *allowed))
    return frozenset()


def _say_ready(url: str, console: Console, base_name: str, *, as_json: bool) -> None:
    from ince.cli.output import print_json

    if as_json:
        print_json({"url": url, "model": base_name})
    else:
        console.print(f"serving {base_name} at {url}  (Ctrl-C stops)", markup=False)
