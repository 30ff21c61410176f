import json
import resource
import subprocess
import sys

import click
import pytest

from ince.cli import app, main
from ince.errors import ConfigError, InceError, InterruptedRunError, Problem, ProofError

LIMITS = {
    "--requests-per-minute",
    "--tokens-per-minute",
    "--max-concurrent",
    "--max-adapters",
    "--max-bytes",
    "--weight",
    "--admin",
}
# The command line that people and programs rely on: a change here is a change for them.
SURFACE = {
    "demo": {"--output", "--quick"},
    "plan": {
        "--memory",
        "--device",
        "--tokens",
        "--price",
        "--method",
        "--rank",
        "--length",
        "--rows",
        "--activations",
        "--data",
        "--plot",
        "--write",
    },
    "train": {"--fresh"},
    "lr-find": {"--from", "--to", "--steps", "--stop-factor", "--plot", "--out"},
    "sweep": {
        "--budget",
        "--eta",
        "--min-steps",
        "--random",
        "--seed",
        "--out",
        "--plot",
        "--dry-run",
        "--fresh",
        "--yes",
    },
    "eval": {
        "--data",
        "--base",
        "--num-rows",
        "--max-new-tokens",
        "--batch-size",
        "--english",
        "--quantize",
        "--device",
    },
    "chat": {
        "--base",
        "--base-model",
        "--adapter",
        "--adapters",
        "--registry",
        "--prompt",
        "--system",
        "--max-new-tokens",
        "--temperature",
        "--top-p",
        "--seed",
        "--quantize",
        "--device",
    },
    "serve": {
        "--adapters",
        "--registry",
        "--name",
        "--quantize",
        "--dtype",
        "--device",
        "--host",
        "--port",
        "--allow-host",
        "--slots",
        "--adapter-memory",
        "--kv-memory",
        "--max-batch-tokens",
        "--max-running",
        "--max-waiting",
        "--timeout",
        "--drain-seconds",
        "--quiet",
    },
    "merge": {"--out", "--base", "--quantize", "--device"},
    "inspect": {"--base", "--layers", "--plot"},
    "data inspect": {
        "--model",
        "--row",
        "--packed",
        "--format",
        "--max-length",
        "--loss-on",
        "--truncation",
        "--system",
    },
    "registry put": {"--name", "--tenant", "--base-digest", "--registry"},
    "registry list": {"--tenant", "--registry"},
    "registry show": {"--tenant", "--registry"},
    "registry alias": {"--tenant", "--registry"},
    "registry rollback": {"--tenant", "--registry"},
    "registry history": {"--tenant", "--registry"},
    "registry remove": {"--tenant", "--registry"},
    "registry gc": {"--dry-run", "--keep", "--min-age", "--registry"},
    "registry verify": {"--registry"},
    "registry audit": {"--last", "--registry"},
    "registry tenant add": {"--allow", *LIMITS, "--registry"},
    "registry tenant list": {"--registry"},
    "registry tenant change": {*LIMITS, "--registry"},
    "registry tenant remove": {"--registry"},
    "registry tenant allow": {"--registry"},
    "registry tenant disallow": {"--registry"},
    "registry tenant usage": {"--since", "--registry"},
    "registry key add": {"--label", "--registry"},
    "registry key list": {"--registry"},
    "registry key revoke": {"--registry"},
    "env": set(),
    "quantize": {
        "--out",
        "--quant-type",
        "--blocksize",
        "--no-double-quant",
        "--scale-search",
        "--quantize-head",
        "--skip",
        "--compute-dtype",
        "--format",
        "--revision",
    },
}


def leaves(command, path=()):
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from leaves(command.get_command(context, name), (*path, name))
    else:
        yield " ".join(path), command


def test_the_surface_is_what_it_was():
    found = {
        name: {
            option
            for parameter in command.params
            if isinstance(parameter, click.Option)
            for option in parameter.opts
        }
        for name, command in leaves(app.cli)
    }
    assert found == {name: {*options, "--json", "--debug"} for name, options in SURFACE.items()}


@pytest.mark.parametrize("name", SURFACE)
def test_every_command_has_help_with_an_example(command, name):
    code, out, _ = command(*name.split(), "--help")
    assert code == 0
    assert f"Example: ince {name}" in " ".join(out.split())
    assert "--json" in out


def in_a_process(*arguments: str, cwd, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ince.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        **options,
    )


def test_help_is_quick_and_imports_nothing_heavy(tmp_path):
    program = (
        "import sys\n"
        "from ince.cli import main\n"
        "code = main(['--help'])\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'yaml', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)\n"
    )
    seconds = []
    for _ in range(3):
        # Time on the processor: other work on the machine does not count.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0, done.stderr
    assert min(seconds) < 0.5
    assert all(name.split()[0] in done.stdout for name in SURFACE)


def test_no_arguments_show_the_help(command):
    assert command()[:2] == command("--help")[:2]
    assert "inspect" in command("data")[1]


def test_version(command):
    code, out, _ = command("--version")
    assert code == 0
    assert out.startswith("ince ")


@pytest.mark.parametrize(
    "arguments, hint",
    [
        (("trian",), "did you mean 'train'?"),
        (("train",), "missing argument 'RECIPE'"),
        (("train", "x.yaml", "--frsh"), "--fresh"),
        (("chat", "--temperature", "hot"), "'hot'"),
        (("chat", "--temperature", "-1"), "range"),
        (("eval", "x", "--quantize", "int8"), "nf4"),
        (("data", "inspct"), "inspect"),
        (("merge", "x"), "--out"),
    ],
)
def test_misuse_is_one_error_and_exit_2(command, arguments, hint):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert hint in err
    assert "Traceback" not in err
    code, out, err = command(*arguments, "--json")
    assert (code, err) == (2, "")
    assert hint in json.dumps(json.loads(out)["error"])


@pytest.fixture
def failing(monkeypatch):
    """Put a command named ``fail`` into the table that raises what it is given."""

    def put(error: BaseException) -> None:
        @click.command()
        @click.option("--json", "as_json", is_flag=True)
        @click.option("--debug", is_flag=True, expose_value=False)
        def fail(as_json: bool) -> None:
            raise error

        monkeypatch.setattr(app.CommandEntry, "load", lambda _self: fail)
        monkeypatch.setattr(app, "COMMANDS", {"fail": app.CommandEntry("", "fails")})

    return put


@pytest.mark.parametrize(
    "error, code, words",
    [
        (InceError("it failed"), 1, "it failed"),
        (ConfigError("mistakes", problems=[Problem("a.b", "wrong", "right")]), 2, "a.b: wrong"),
        (ProofError("does not hold", got=3), 3, "does not hold"),
        (InterruptedRunError("stopped after step 3", do="run it again"), 130, "run it again"),
        (KeyboardInterrupt(), 130, "stopped"),
        (OSError(28, "No space left on device", "x"), 1, "no space left"),
        (PermissionError(13, "Permission denied", "secret"), 2, "secret"),
        (MemoryError(), 1, "out of memory"),
        (ValueError("odd"), 1, "ValueError: odd"),
    ],
)
def test_each_failure_has_its_exit_code_and_no_traceback(command, failing, error, code, words):
    failing(error)
    found, out, err = command("fail")
    assert (found, out) == (code, "")
    assert words in err
    assert "Traceback" not in err
    found, out, err = command("fail", "--json")
    assert found == code
    assert json.loads(out)["error"]["exit_code"] == code
    assert err.strip() == ""


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_traceback(command, failing, place):
    failing(ValueError("odd"))
    arguments = ["--debug", "fail"] if place == "before" else ["fail", "--debug"]
    _, _, err = command(*arguments)
    assert "Traceback" in err
    assert "ValueError: odd" in err


def test_a_debug_after_two_dashes_is_an_argument(command, failing):
    failing(ValueError("odd"))
    assert "Traceback" not in command("fail", "--", "--debug")[2]


def test_a_reader_that_leaves_ends_the_command_quietly(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-m", "ince.cli", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_the_module_runs_as_a_program(tmp_path):
    done = in_a_process("nothing", "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["type"] == "InputError"
    assert done.stderr == ""


def test_main_takes_the_arguments_of_the_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ince", "--version"])
    assert main() == 0
    assert "ince" in capsys.readouterr().out
