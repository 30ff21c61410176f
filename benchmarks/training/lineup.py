"""Who trains in a comparison, in which process and with what: the line-up of `train_cpu.py`."""

import contextlib
import json
import subprocess
import sys

PEERS = {
    "TRL NF4": ("trl", {"quantize": "nf4"}),
    "TRL 16-bit": ("trl", {"quantize": "none"}),
    "plain NF4": ("plain", {"quantize": "nf4"}),
}
_NEEDED = {"trl": ("trl", "peft", "bitsandbytes", "datasets"), "plain": ("peft", "bitsandbytes")}


def runners():
    """Name in a worker's command line → what it runs; each imports its library when it runs."""
    from training import bound, ince_run, peers, scorer

    return {
        "ince": ince_run.run_ince,
        "trl": peers.run_trl,
        "plain": peers.run_plain,
        "bound": bound.run_bound,
        "score": scorer.run_scorer,
    }


def parse_variant(text):
    """``NAME:section.key=JSON,…`` as (name, {section: {key: value}}); ``env.NAME`` sets a variable
    of the environment."""
    name, _, rest = text.partition(":")
    changes = {}
    for change in filter(None, rest.split(",")):
        key, _, value = change.partition("=")
        section, _, field = key.partition(".")
        if not field:
            raise ValueError(f"{change!r} is not section.key=value")
        if section != "env":
            with contextlib.suppress(ValueError):  # a word needs no quotes
                value = json.loads(value)
        changes.setdefault(section, {})[field] = value
    return name, changes


def line_up(variants, python, names):
    """Name → (runner, interpreter, what its spec adds), of those that can run here and are wanted.

    Args:
        variants: of ince, as (name, changes of the recipe); the first is the one compared.
        python: of the peers.
        names: beginnings of names that are wanted; all when empty.
    """
    found = {}
    for name, changes in variants:
        changes = dict(changes)
        env = changes.pop("env", {})
        found[name] = ("ince", sys.executable, {"quantize": "nf4", "changes": changes, "env": env})
    for name, (runner, changes) in PEERS.items():
        if names and not name.startswith(names):
            continue
        missing = _missing(python, _NEEDED[runner])
        if missing:
            print(f"without {name}: {', '.join(missing)} cannot be imported by {python}")
        else:
            found[name] = (runner, python, changes)
    return {name: entry for name, entry in found.items() if not names or name.startswith(names)}


def _missing(python, packages):
    asked = "import importlib.util as u; print([n for n in {} if u.find_spec(n) is None])"
    return json.loads(_said(python, asked.format(packages)).replace("'", '"'))


def peer_versions(python):
    """Of the peers' packages, as their interpreter has them."""
    names = sorted({name for needed in _NEEDED.values() for name in needed})
    asked = (
        "import importlib.metadata as m, importlib.util as u, json; "
        f"print(json.dumps({{n: m.version(n) for n in {names} if u.find_spec(n)}}))"
    )
    return json.loads(_said(python, asked))


def _said(python, program):
    command = [str(python), "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
