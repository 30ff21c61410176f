"""What the README shows is what happens: the demo reaches its goals, and every command runs.

One demo run serves all tests here; the README's commands go on from it in the same folder,
in the README's order.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ince.ops import native_dtype

ROOT = Path(__file__).parents[2]
# Where bfloat16 is only emulated the whole demo takes over half an hour, more than the checks
# may; there its short form serves the commands, and its goals are not judged.
IS_SLOW = native_dtype("cpu") == torch.float32
DEMO = ("demo", "--json", *(("--quick",) if IS_SLOW else ()))
# With the threads that torch chooses: one test after another, and on a real model.
AS_A_USER = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
README = (ROOT / "README.md").read_text(encoding="utf-8")

METRICS = {
    "inflection_exact_match",
    "diacritics_word_accuracy",
    "diacritics_chrf",
    "heldout_loss",
    "english_bits_per_byte",
}


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def ince(folder, *arguments, timeout=3600):
    """Run the command line in `folder`, as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "ince.cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=AS_A_USER | {"HF_HUB_OFFLINE": "1"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("user")


@pytest.fixture(scope="module")
def demo(folder):
    """The whole demo, once."""
    done = ince(folder, *DEMO)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return json.loads(done.stdout)


@pytest.mark.long
@pytest.mark.skipif(IS_SLOW, reason="the whole demo is too long for a processor without bfloat16")
def test_the_demo_reaches_its_goals(demo):
    for who, names in (
        ("base", METRICS),
        ("tuned", METRICS),
        ("echo", {"inflection_exact_match", "diacritics_word_accuracy", "diacritics_chrf"}),
    ):
        assert demo[who].keys() == names
    base, tuned, echo = demo["base"], demo["tuned"], demo["echo"]
    assert tuned["inflection_exact_match"] >= 0.60
    assert tuned["diacritics_word_accuracy"] >= 0.55
    assert tuned["diacritics_chrf"] > echo["diacritics_chrf"] > base["diacritics_chrf"]
    assert tuned["english_bits_per_byte"] <= 1.03 * base["english_bits_per_byte"]
    assert tuned["heldout_loss"] < 0.2 * base["heldout_loss"]
    for name in ("inflection_exact_match", "diacritics_word_accuracy"):
        assert base[name] == echo[name] == 0
        assert demo["intervals"][name][0] > 0.4
        assert demo["num_rows"][name] >= 200
    assert demo["parity_max_abs_logit_diff"] < 0.01
    assert demo["peak_bytes"] <= 2.5e9


@pytest.mark.long
def test_the_demo_leaves_a_whole_run(demo, folder):
    run = folder / demo["run"]
    for name in (
        "run.json",
        "recipe.yaml",
        "log.jsonl",
        "eval.json",
        "samples.jsonl",
        "report.html",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "data/card.md",
    ):
        assert (run / name).is_file(), name
    assert len((run / "samples.jsonl").read_text("utf-8").splitlines()) == 20
    page = (run / "report.html").read_text("utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "")
    shown = ince(folder, *DEMO)
    assert json.loads(shown.stdout)["tuned"] == demo["tuned"]


def commands():
    return [line for block in blocks("sh") for line in block.splitlines() if line.strip()]


def test_the_readme_has_commands_and_make_knows_its_targets():
    assert len(commands()) >= 5
    assert all(command.startswith("ince ") for command in commands())
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\S+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", targets, flags=re.MULTILINE), target


def test_every_file_that_the_readme_names_is_there():
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        named = ROOT / path
        beside = ROOT / "src" / "ince" / path
        assert named.exists() or beside.exists(), path


@pytest.mark.long
@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_readme_runs(demo, folder, command):
    (recipe,) = blocks("yaml")
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    _, *arguments = shlex.split(command)
    done = ince(folder, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_the_program_of_the_readme_prints_what_it_says(folder):
    program, _ = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in README
    assert (folder / "adapters/untrained/adapter_config.json").is_file()


@pytest.mark.long
def test_pefts_program_runs_with_either_import_line(demo, folder):
    """The adapter that one wrote is the other's, after the same steps."""
    _, program = blocks("python")
    assert 18 <= len(program.strip().splitlines()) <= 24
    if not (folder / "models/turkish").is_dir():
        assert ince(folder, "merge", "runs/demo", "--out", "models/turkish").returncode == 0
    printed = {}
    for package in ("ince", "peft"):
        text = program.replace("from ince import", f"from {package} import")
        text = text.replace("adapters/mine", f"adapters/{package}")
        done = subprocess.run(
            [sys.executable, "-c", text],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        printed[package] = done.stdout
    assert printed["ince"] == printed["peft"]
    ours, theirs = (
        load_file(folder / "adapters" / package / "adapter_model.safetensors")
        for package in ("ince", "peft")
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        # Five steps of AdamW: a gradient's last digit can move an entry by a whole step.
        assert (tensor - theirs[name]).abs().mean() < 1e-4
