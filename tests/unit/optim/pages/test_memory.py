"""A budget is what leaves the process's own memory, as seen from outside of ince."""

import subprocess
import sys

import pytest
import torch

from ince.optim.pages.memory import page_memory

NUM_WEIGHTS = 6_000_000
STATE_BYTES = 8 * NUM_WEIGHTS

PEAKS = """
import sys, threading
from pathlib import Path

import torch
from ince.optim import PagedAdamW, PagesConfig

def own():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])

weight = torch.nn.Parameter(torch.ones(int(sys.argv[2])))
weight.grad = torch.ones_like(weight)
for budget in map(int, sys.argv[3:]):
    pages = PagesConfig(memory=budget, page_bytes=1 << 20, directory=Path(sys.argv[1]))
    optimizer = PagedAdamW([weight], pages=pages)
    optimizer.step()  # makes the state
    seen, over = [own()], threading.Event()

    def watch():
        while not over.wait(0.005):
            seen.append(own())

    watcher = threading.Thread(target=watch)
    watcher.start()
    optimizer.step()
    over.set()
    watcher.join()
    print(max(seen))
    optimizer.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's own memory")
def test_the_peak_of_a_step_falls_by_what_the_budget_says(tmp_path):
    budgets = STATE_BYTES // 4, STATE_BYTES
    arguments = map(str, (tmp_path, NUM_WEIGHTS, *budgets))
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, *arguments], capture_output=True, text=True, check=True
    )
    quarter, whole = map(int, done.stdout.split())
    left = budgets[1] - budgets[0]
    # Beside it come and go a few MB of threads and of what else a second optimizer takes.
    assert 0.85 * left < whole - quarter < 1.3 * left


def test_memory_is_zeros_until_it_is_written():
    found = page_memory(5 << 20, pinned=False)
    assert not found.any()
    found[-1] = 7
    assert found.sum() == 7
    assert found.dtype == torch.uint8
