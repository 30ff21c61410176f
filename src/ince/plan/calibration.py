"""What this device reaches, measured in a second or two and kept; and what earlier runs taught.

    CACHE/plan/DEVICE.json   {"format", "device", "rates": {TYPE: {...}}, "runs": [RUN, …]}

Rates are of products, of weights expanded from four bits, of numbers moved, and on a processor of
a file in ince's cache, where the pages of an optimizer may lie as well. Runs are what was
planned and what was measured (`ince.plan.truth` writes them): the median of the newest corrects the
next plan, and the plan says so. A file that cannot be read is one that is not there.
"""

import contextlib
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ince.errors import InceError
from ince.files import read_json, write_json
from ince.plan.duration import Rate
from ince.plan.memory import Overheads
from ince.plan.setup import Setup

__all__ = ["Calibration", "RunFact", "calibration_file", "this_device"]

_FORMAT = "ince-plan/1"
_MAX_RUNS = 40
_NEWEST = 9
_LARGEST_SHARE = 0.3
_LEAST_BYTES = 64 * 2**20

# Of a product that is timed: large enough for full speed, small enough for a second in all.
_ROWS, _WIDTH = 512, 1024
_NUM_TRIALS = 5
# Of a file: as many pages, of the size that an optimizer's have.
_FILE = "file"
_NUM_PAGES, _PAGE_BYTES = 8, 4 * 2**20


@dataclass(frozen=True)
class RunFact:
    """A run's plan beside what was measured of it.

    Attributes:
        held_bytes: planned tensors before the first step; measured_held_bytes: all that was held.
        moving_bytes: planned on top of that at the peak, in tensors.
        fixed_bytes: planned besides, whatever the allocator's share is.
        measured_moving_bytes: what came on top of it.
        seconds: planned of a token, uncorrected; measured_seconds: of one.
    """

    held_bytes: int
    measured_held_bytes: int
    moving_bytes: int
    fixed_bytes: int
    measured_moving_bytes: int
    seconds: float
    measured_seconds: float

    @property
    def framework_bytes(self) -> int:
        """What was held before the first step beside the tensors."""
        return self.measured_held_bytes - self.held_bytes

    @property
    def surplus_bytes(self) -> int:
        """What came in a step beyond that."""
        return self.measured_moving_bytes - self.moving_bytes - self.fixed_bytes


_ASSUMED = Rate(
    1e11, 1.5e9, 1e10, 1.0, "assumed: this device has not been measured yet", is_assumed=True
)


def this_device(device_type: str) -> str:
    """The device that a run would use, as its file is named."""
    if device_type == "cuda":
        import torch

        name = torch.cuda.get_device_name()
    else:
        from ince.record import hardware

        facts = hardware()
        threads = os.environ.get("OMP_NUM_THREADS", facts["num_cores"])
        name = f"{device_type} {facts['processor']} {threads} threads {platform.machine()}"
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")[:120]


def calibration_file(device: str) -> Path:
    """Where it is kept."""
    from ince.models.cache import cache_folder

    return cache_folder() / "plan" / f"{device}.json"


class Calibration:
    """Rates and runs of one device."""

    def __init__(
        self,
        device: str,
        *,
        rates: Mapping[str, Mapping[str, float]] | None = None,
        runs: Sequence[RunFact] = (),
    ) -> None:
        self.device = device
        self._rates = dict(rates or {})
        self.runs = list(runs)

    @classmethod
    def read(cls, device: str) -> "Calibration":
        """What is known of it; nothing where nothing can be read."""
        with contextlib.suppress(InceError, OSError, TypeError, ValueError, KeyError):
            content: Any = read_json(calibration_file(device))
            if content.get("format") == _FORMAT:
                rates = {
                    str(name): {key: float(value) for key, value in each.items()}
                    for name, each in content["rates"].items()
                }
                runs = [RunFact(**each) for each in content["runs"]]
                if all(each.moving_bytes > 0 and each.seconds > 0 for each in runs):
                    return cls(device, rates=rates, runs=runs)
        return cls(device)

    def save(self) -> None:
        """Keep it; a cache that cannot be written to costs time only."""
        with contextlib.suppress(InceError, OSError):
            write_json(
                calibration_file(self.device),
                {
                    "format": _FORMAT,
                    "device": self.device,
                    "rates": self._rates,
                    "runs": [asdict(each) for each in self.runs[-_MAX_RUNS:]],
                },
            )

    def learn(self, fact: RunFact) -> None:
        """Add a run, and keep it; of one too small nothing can be learnt for larger ones."""
        if fact.moving_bytes >= _LEAST_BYTES and fact.seconds > 0:
            self.runs.append(fact)
            self.save()

    def overheads(self, setup: Setup) -> Overheads:
        """Of earlier runs, or assumed."""
        newest, assumed = self.runs[-_NEWEST:], Overheads.assumed(setup)
        if not newest:
            return assumed
        # Of all together: of a small run the share is mostly chance.
        share = sum(each.surplus_bytes for each in newest)
        share /= sum(each.moving_bytes for each in newest)
        return Overheads(
            max(0, round(median(each.framework_bytes for each in newest))),
            assumed.first_use_bytes,
            min(max(share, 0.0), _LARGEST_SHARE),
            f"learnt from {_num_runs(newest)} on this device",
        )

    def rate(self, value_bytes: int, device_type: str, *, measure: bool = True) -> Rate:
        """Measured now, unless it was before.

        Args:
            value_bytes: of a number of the products.
            device_type: such as ``cpu``.
            measure: False: where it was not measured before, one is assumed.
        """
        key = f"{8 * value_bytes} bits"
        if key not in self._rates and not measure:
            return _ASSUMED
        if key not in self._rates:
            self._rates[key] = _measured(value_bytes, device_type)
            self.save()
        if measure and device_type == "cpu" and _FILE not in self._rates:
            self._rates[_FILE] = {"filed": _measured_file()}
            self.save()
        found = self._rates[key]
        newest = self.runs[-_NEWEST:]
        correction, source = 1.0, "measured on this device"
        if newest:
            correction = median(each.measured_seconds / each.seconds for each in newest)
            source += f", corrected by {correction:.2f} after {_num_runs(newest)}"
        return Rate(
            found["flops"],
            found["expanded"],
            found["moved"],
            correction,
            f"{source}: {found['flops'] / 1e9:,.0f} GFLOP/s in {key}",
            is_assumed=False,
            filed=self._rates.get(_FILE, {}).get("filed") or None,
        )


def _num_runs(runs: Sequence[RunFact]) -> str:
    return "an earlier run" if len(runs) == 1 else f"{len(runs)} earlier runs"


def _measured(value_bytes: int, device_type: str) -> dict[str, float]:
    import torch

    from ince.ops import dequantize_4bit, quantize_4bit

    dtype = {2: torch.bfloat16, 4: torch.float32}[value_bytes]
    device = torch.device(device_type)
    x = torch.ones(_ROWS, _WIDTH, dtype=dtype, device=device)
    weight = torch.ones(_WIDTH, _WIDTH, dtype=dtype, device=device)
    packed, absmax = quantize_4bit(weight, 64, "nf4")

    def expand() -> object:
        return dequantize_4bit(packed, absmax, 64, (_WIDTH, _WIDTH), dtype, "nf4")

    large = torch.ones(4 * _WIDTH, _WIDTH, dtype=dtype, device=device)
    product = _quickest(lambda: x @ weight.t(), device)
    return {
        "flops": 2 * _ROWS * _WIDTH * _WIDTH / product,
        "expanded": _WIDTH * _WIDTH / _quickest(expand, device),
        "moved": 3 * large.numel() * value_bytes / _quickest(lambda: large + large, device),
    }


def _measured_file() -> float:
    """Bytes in a second, written over and read back, a page at a time; 0 where none can be made.

    What is overwritten is what the system still has in memory, as it is in a run.
    """
    from ince.models.cache import cache_folder

    page = memoryview(bytearray(os.urandom(_PAGE_BYTES)))
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:

            def once() -> float:
                start = time.perf_counter()
                for work in (file.write, file.readinto):
                    file.seek(0)
                    for _ in range(_NUM_PAGES):
                        work(page)
                return time.perf_counter() - start

            once()
            seconds = median(once() for _ in range(_NUM_TRIALS))
    except OSError:  # no such folder, no space
        return 0.0
    return 2 * _NUM_PAGES * _PAGE_BYTES / seconds


def _quickest(work: Callable[[], object], device: Any) -> float:
    import torch

    def once() -> float:
        start = time.perf_counter()
        for _ in range(3):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / 3

    once()
    return median(once() for _ in range(_NUM_TRIALS))
