"""The run record, ``run.json``: what a run was, did and proved.

Everything above writes its facts in here and nowhere else; the report and the
model card are made from it. It holds plain JSON, so that a program without ince reads it:

    format      "ince-run/1"
    status      "running" | "interrupted" | "failed" | "done"
    created, finished            ISO 8601, UTC
    recipe      the resolved recipe;  recipe_digest  its SHA-256
    versions    {"ince", "python", "torch", "transformers", …}
    hardware    {"platform", "processor", "num_cores", "memory_bytes", "accelerator"}
    base        {"reference", "name", "kind", "digest", "license", "num_parameters",
                 "weight_bytes", "quantization": {...} | null}
    adapter     {"r", "alpha", "target_modules", "num_trainable", "num_total", "digest"}
    model       in its place where every weight was trained: {"method", "num_trainable",
                 "num_total", "dtype", "digest"}
    data        {"train": SPLIT, "eval": SPLIT | null}, SPLIT = {"path", "digest", "shape",
                 "num_rows", "num_examples", "num_dropped", "dropped": {reason: count},
                 "num_tokens", "num_targets", "num_truncated", "num_split", "truncation",
                 "num_lost_tokens", "num_lost_targets", "num_lost_stops"}
    training    {"steps", "epochs", "num_tokens", "num_targets", "seconds",
                 "tokens_per_second", "first_loss", "final_loss",
                 "num_skipped", "num_spikes", "adapter_step" (whose weights the result has),
                 "best_step", "best_loss" (null without evaluations), "stopped_early"}
    memory      {"limit_bytes", "limit" (null without one), "held_bytes" before the first step,
                 "probes": [{"num_rows", "length", "num_targets", "peak_bytes", "fits"}],
                 "expected_bytes", "measured_bytes" of the worst step, "micro_batch_tokens",
                 "cuts": [{"step", "micro_batch_tokens"}], "pages" (null where the optimizer does
                 not page): {"device_bytes", "memory_bytes", "file_bytes", "moved_bytes",
                 "waited_seconds"}}
    plan        {"method", "num_rows", "length", "num_targets", "overheads", "rate", "parts",
                 "peak_at", "planned_bytes", "planned_tokens_per_second"}, made before the first
                 step; after the last also {"components": [{"name", "planned_bytes",
                 "measured_bytes"}], "measured_bytes", "error", "measured_tokens_per_second",
                 "time_error"}; absent where no plan is known for the model's family
    evaluation  the content of eval.json (below) | null
    proofs      [{"name", "value" (null when it was not finite), "limit", "unit", "holds",
                 "detail"}]
    phases      [{"name", "seconds", "peak_bytes"}] in order: where time and memory went
    seconds, peak_bytes          of the whole
    error       {"type", "what", …} when failed

``eval.json``:

    {"confidence": 0.95, "metrics": [{"name", "label", "group", "unit", "higher_is_better",
      "base", "tuned", "echo" | null, "difference", "low", "high", "num_rows"}]}

``samples.jsonl``, a line each:
    {"task", "prompt", "expected", "base", "tuned", "base_right", "tuned_right"}
``log.jsonl``, a line per step:
    {"step", "loss", "lr", "grad_norm", "tokens", "target_tokens", "tokens_per_second",
     "target_tokens_per_second", "peak_bytes"}; of a step that was passed over, "loss" and
     "grad_norm" may be null, and "skipped" is true; where the optimizer pages, "pages" has
     {"device_bytes", "memory_bytes", "file_bytes", "waited_seconds"}. Further lines, by their keys:
    {"step", "eval_loss"}
    {"step", "samples": [{"prompt", "expected", "output"}]}
    {"step", "event": "skipped", "what", "sources": [row, …]}
    {"step", "event": "spike", "spike_loss", "limit", "sources": [row, …]}
    {"step", "event": "micro-batch cut", "what", "micro_batch_tokens"}
    {"step", "event": "pages shrunk", "what", "budget_bytes"}
"""

import importlib.metadata
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ince.errors import CorruptFileError, DiskFullError
from ince.files import read_json, write_json
from ince.heap import most_held_bytes

__all__ = ["RECORD_FORMAT", "RunRecord", "hardware", "peak_memory_bytes", "versions"]

RECORD_FORMAT = "ince-run/1"

_RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pydantic",
    "sacrebleu",
)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions(*more: str) -> dict[str, str]:
    """Versions of ince, Python and the packages that shape a result; absent ones are left out.

    Args:
        more: names of packages to ask for besides.
    """
    found = {"python": platform.python_version()}
    for name in ("ince", *_RECORDED_PACKAGES, *more):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def hardware() -> dict[str, object]:
    """The machine as it matters to a result; no host name and no user name."""
    facts: dict[str, object] = {
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "num_cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_bytes": None,
        "accelerator": None,
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory_bytes"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["accelerator"] = torch.cuda.get_device_name(0)
    return facts


def peak_memory_bytes() -> int:
    """The most memory this process has held at once: its peak resident set, in bytes."""
    return most_held_bytes()


class RunRecord:
    """``run.json`` of one run folder: sections are set whole and saved at once.

    >>> record = RunRecord.create(Path("runs/x"), recipe={...}, recipe_digest="…")
    >>> record["training"] = {...}      # saved whole, atomically
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self.content = content
        self._started = time.monotonic()

    @classmethod
    def create(cls, folder: Path, *, recipe: dict[str, Any], recipe_digest: str) -> "RunRecord":
        """Start the record of a new run and save it."""
        record = cls(
            Path(folder) / "run.json",
            {
                "format": RECORD_FORMAT,
                "status": "running",
                "created": _now(),
                "finished": None,
                "recipe": recipe,
                "recipe_digest": recipe_digest,
                "versions": versions(),
                "hardware": hardware(),
                "proofs": [],
                "phases": [],
                "seconds": 0.0,
            },
        )
        record.save()
        return record

    @classmethod
    def read(cls, folder: Path) -> "RunRecord":
        """Read the record in `folder`.

        Raises:
            InputError: there is none.
            CorruptFileError: it is not a record of this format.
        """
        path = Path(folder) / "run.json"
        content = read_json(path)
        if content.get("format") != RECORD_FORMAT:
            raise CorruptFileError(
                "not a run record of a known format",
                where=path,
                got=content.get("format"),
                expected=RECORD_FORMAT,
            )
        return cls(path, content)

    def __getitem__(self, section: str) -> Any:
        return self.content[section]

    def get(self, section: str) -> Any:
        """The section, or None when it was not written."""
        return self.content.get(section)

    def __setitem__(self, section: str, value: Any) -> None:
        self.content[section] = value
        # A full disk costs the run nothing here: the next writing holds this section, too, and
        # `finish` says so when there is still no room.
        with suppress(DiskFullError):
            self.save()

    def add_proof(
        self, name: str, *, value: float, limit: float, unit: str, holds: bool, detail: str = ""
    ) -> None:
        """Record one proof and save; an earlier one of the same name is replaced."""
        proof = {
            "name": name,
            "value": value if math.isfinite(value) else None,
            "limit": limit,
            "unit": unit,
            "holds": holds,
            "detail": detail,
        }
        self["proofs"] = [p for p in self["proofs"] if p["name"] != name] + [proof]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a named part of the run; it is recorded even when it fails."""
        start = time.monotonic()
        try:
            yield
        finally:
            spent = {
                "name": name,
                "seconds": round(time.monotonic() - start, 3),
                "peak_bytes": peak_memory_bytes(),
            }
            self["phases"] = [*self["phases"], spent]

    def finish(self, status: str, error: dict[str, object] | None = None) -> None:
        """Close the record: status, end time, seconds and peak memory over all its processes.

        A run that was read back and continued adds to what it had spent before.

        Raises:
            DiskFullError: the run is done, and there is no room to say so. What went wrong
                before is not hidden behind it.
        """
        now = time.monotonic()
        spent = float(self.content.get("seconds") or 0.0) + now - self._started
        self._started = now
        earlier_peak = int(self.content.get("peak_bytes") or 0)
        self.content["status"] = status
        self.content["finished"] = _now()
        self.content["seconds"] = round(spent, 3)
        self.content["peak_bytes"] = max(earlier_peak, peak_memory_bytes())
        if error is None:
            self.content.pop("error", None)
        else:
            self.content["error"] = error
        try:
            self.save()
        except DiskFullError:
            if status == "done":
                raise

    def save(self) -> None:
        """Write the record whole."""
        write_json(self.path, self.content)
