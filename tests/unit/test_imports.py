"""Importing has no effect, costs little, and brings in no oracle of the tests."""

import ast
import json
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "ince"
MODULES = sorted(
    ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
    if path.name != "__main__.py"
)
HEAVY = {"torch", "transformers", "matplotlib", "pyarrow", "sacrebleu", "pydantic", "rich", "yaml"}
ORACLES = {"peft", "bitsandbytes"}


def run_python(program: str, *arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


IMPORT_INCE = """
import json, sys, time
start = time.perf_counter()
import ince
seconds = time.perf_counter() - start
modules = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"seconds": seconds, "modules": modules}))
"""


def test_importing_ince_is_quick_and_brings_nothing_heavy(tmp_path):
    found = [json.loads(run_python(IMPORT_INCE, cwd=tmp_path)) for _ in range(3)]
    assert HEAVY.isdisjoint(found[0]["modules"])
    assert min(each["seconds"] for each in found) < 0.25


# Third parties are imported first: what they do is theirs.
IMPORT_ALL = """
import importlib, json, logging, os, pathlib, signal, socket, sys, threading, warnings

import torch, transformers, pydantic, rich, click, yaml, numpy, safetensors.torch
import transformers.core_model_loading, transformers.quantizers.auto, transformers.trainer

def no_network(*_, **__):
    raise AssertionError("a socket was made while importing")

def facts():
    root = logging.getLogger()
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "arguments": list(sys.argv),
        "handlers": len(root.handlers),
        "levels": {n: l.level for n, l in root.manager.loggerDict.items()
                   if isinstance(l, logging.Logger) and l.level},
        "threads": threading.active_count(),
        "torch": [torch.get_num_threads(), str(torch.get_default_dtype()),
                  torch.is_grad_enabled(), torch.initial_seed(),
                  torch.are_deterministic_algorithms_enabled(), torch.cuda.is_initialized()],
        "signals": [str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)],
        "filters": len(warnings.filters),
        "streams": [sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__],
        "files": sorted(str(path) for path in pathlib.Path().rglob("*")),
        "hook": sys.excepthook is sys.__excepthook__,
    }

socket.socket = no_network
torch.manual_seed(3)
before = facts()
changed = {}
for name in sys.argv[1:]:
    importlib.import_module(name)
    after = facts()
    changed.update({f"{name}: {k}": [before[k], after[k]] for k in before if before[k] != after[k]})
    before = after
print(json.dumps(changed))
"""


def test_importing_any_module_changes_nothing(tmp_path):
    printed = run_python(IMPORT_ALL, *MODULES, cwd=tmp_path)
    assert json.loads(printed) == {}


def imported_names(tree: ast.AST) -> set[str]:
    """Top-level packages that a module imports, also by name in a call."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in {"import_module", "__import__", "find_spec", "is_available"}:
                found.add(str(node.args[0].value).partition(".")[0])
    return found


def test_the_oracles_of_the_tests_are_no_part_of_ince():
    found = {
        str(path.relative_to(SOURCE)): imported_names(ast.parse(path.read_text("utf-8"))) & ORACLES
        for path in SOURCE.rglob("*.py")
    }
    assert {name: oracles for name, oracles in found.items() if oracles} == {}


def test_an_oracle_hidden_in_a_call_is_found():
    tree = ast.parse("import importlib\nimportlib.import_module('peft.tuners')")
    assert imported_names(tree) == {"importlib", "peft"}
