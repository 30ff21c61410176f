"""What the repository itself promises: nothing private, nothing unfinished, files of one idea."""

import ast
import re
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "ince"
SOURCE_FILES = sorted(SOURCE.rglob("*.py"))
NOT_OURS = {".git", ".venv", "__pycache__", "build", "dist", "runs"}
# What an editable install compiles, beside the source.
NOT_OURS |= {".cmake", ".skbuild-info.json", "CMakeCache.txt", "CMakeFiles", "CMakeInit.txt"}
NOT_OURS |= {"build.ninja", "cmake_install.cmake", "libince_cpu.so", ".ninja_log", ".ninja_deps"}

# Each is written so that it does not find itself.
FORBIDDEN = {
    "a path of one machine": re.compile(
        r"(?<![\w.~/-])/(?:ho[m]e/\w|ro[o]t/|Use[r]s/\w|wor[k]/\w|mn[t]/\w|op[t]/\w)"
    ),
    "a temporary path of one machine": re.compile(r"(?<![\w.~/-])/tm[p]/\w"),
    "a setting of a package index": re.compile(
        r"(?:--(?:extra-)?inde[x]-url|--find-link[s]|--trusted-hos[t]|extra-inde[x]-url\s*=)"
    ),
    "the host of a package index": re.compile(
        r"(?:py[p]i\.org/simple|files\.pythonhoste[d]\.org|download\.pytorc[h]\.org"
        r"|registry\.np[m]js\.org)"
    ),
    "a secret": re.compile(
        r"(?:\bhf_[A-Za-z0-9]{30,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}"
        r"|\bpypi-[A-Za-z0-9_-]{40,}|\bAKIA[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KE[Y])"
    ),
    "a mark of unfinished work": re.compile(r"\b(?:TOD[O]|FIXM[E]|XX[X]|NotImplementedErro[r])\b"),
}


def repository_files() -> list[Path]:
    """Tracked files; in a copy without git, everything that is not built."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False
    )
    if listed.returncode == 0 and listed.stdout:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
        return [path for path in paths if path.is_file()]
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file() and NOT_OURS.isdisjoint(path.relative_to(ROOT).parts)
    ]


def text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""  # pictures and other bytes


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("kind", FORBIDDEN)
def test_no_file_holds(kind):
    found = [
        f"{shown(path)}:{number}: {line.strip()[:120]}"
        for path in repository_files()
        for number, line in enumerate(text_of(path).splitlines(), start=1)
        if FORBIDDEN[kind].search(line)
    ]
    assert found == [], f"{kind} is in the repository"


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("a path of one machine", 'read("/ho' + 'me/ada/x")'),
        ("a path of one machine", "`/wor" + "k/main`"),
        ("a temporary path of one machine", "--output /tm" + "p/x"),
        ("a setting of a package index", "pip install --inde" + "x-url x"),
        ("the host of a package index", "https://py" + "pi.org/simple/"),
        ("a secret", "token = hf_" + "a" * 34),
        ("a mark of unfinished work", "# TO" + "DO: later"),
    ],
)
def test_the_patterns_find_what_they_are_for(kind, line):
    assert FORBIDDEN[kind].search(line)


def test_no_file_is_large():
    assert [shown(path) for path in repository_files() if path.stat().st_size > 1_000_000] == []


def test_there_is_source_to_check():
    assert SOURCE_FILES


def test_a_module_is_one_idea():
    texts = {shown(path): text_of(path) for path in SOURCE_FILES}
    long = [name for name, text in texts.items() if len(text.splitlines()) > 400]
    assert long == [], "more than one sitting: divide it by ideas"
    nameless = [name for name, text in texts.items() if not ast.get_docstring(ast.parse(text))]
    assert nameless == [], "a module opens with what it is"


def forbidden_names(tree: ast.AST) -> set[str]:
    """What reads or writes pickles, or runs texts, and is imported or called."""
    imported = {
        alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return (imported & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}) | (
        called & {"torch.load", "torch.save", "eval", "exec"}
    )


def test_nothing_is_read_or_written_as_a_pickle():
    found = {shown(path): forbidden_names(ast.parse(text_of(path))) for path in SOURCE_FILES}
    assert {name: names for name, names in found.items() if names} == {}


def test_a_pickle_is_found():
    tree = ast.parse("import pickle\nfrom dill import x\ntorch.load('x')\nmodel.eval()")
    assert forbidden_names(tree) == {"pickle", "dill", "torch.load"}


def test_every_folder_of_source_is_a_package():
    folders = {path.parent for path in SOURCE_FILES}
    assert [shown(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_tests_mirror_the_source():
    unit = ROOT / "tests" / "unit"
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir()} - {"__pycache__"}
    folders = {path.name for path in unit.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders <= rooms
    assert sorted(rooms - folders) == []


def test_tests_are_no_package():
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_what_is_pinned_is_what_is_required():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    pinned = dict(line.lower().replace("_", "-").split("==") for line in lines)
    for requirement in chain(project["dependencies"], *project["optional-dependencies"].values()):
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        assert name is not None
        assert name[0].lower() in pinned
    assert pinned["torch"] == "2.13.0"
