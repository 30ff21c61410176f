import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from ince import heap
from ince.heap import held_bytes, most_held_bytes, peak_within

MIB = 1 << 20


def take(num_bytes):
    """Hold that much and let it go; a mapping of its own, so that it goes at once."""
    block = mmap.mmap(-1, num_bytes)
    block.write(b"x" * num_bytes)
    block.close()


def test_freed_pages_between_kept_ones_go_back():
    if heap._trim() is None:  # a C library without it: nothing to give back, and no error
        assert heap.give_back() is None
        return
    # Small enough for the heap, with one kept in each hundred: the heap's end cannot move.
    blocks = [bytearray(64_000) for _ in range(3_000)]
    kept = blocks[::100]
    full = held_bytes()
    del blocks
    heap.give_back()
    assert len(kept) == 30
    assert held_bytes() < full - 100_000_000


def test_without_such_a_library_nothing_happens(monkeypatch):
    monkeypatch.setattr(heap, "_trim", lambda: None)
    heap.give_back()


def test_a_peak_is_of_its_block_alone():
    if not heap._reset_peak():
        pytest.skip("the peak may not be reset here")
    take(200 * MIB)
    before = held_bytes()
    with peak_within() as peak:
        take(60 * MIB)
        assert peak.num_bytes == 0
    # What is written is held beside the block it is written into.
    assert 55 * MIB < peak.num_bytes - before < 130 * MIB


def test_where_peaks_cannot_be_reset_a_thread_looks(monkeypatch):
    monkeypatch.setattr(heap, "_reset_peak", lambda: False)
    before = held_bytes()
    with peak_within() as peak:
        block = bytearray(b"x" * 60 * MIB)
        while peak.num_bytes < held_bytes() - MIB:
            pass  # until it was seen: no clock decides
        del block
    assert 55 * MIB < peak.num_bytes - before < 130 * MIB


def test_the_peak_of_the_whole_life_outlives_resets():
    before = held_bytes()
    take(200 * MIB)
    most = most_held_bytes()
    assert most > before + 190 * MIB
    with peak_within():
        pass
    assert most_held_bytes() >= most


def test_without_proc_the_peak_stands_for_what_is_held(monkeypatch):
    for name in ("_STATUS", "_PAGES", "_CLEAR"):
        monkeypatch.setattr(heap, name, Path("nowhere/at/all"))
    assert held_bytes() == heap._peak_since_reset() > MIB
    with peak_within() as peak:
        pass
    assert peak.num_bytes > MIB


def test_what_comes_one_after_the_other_is_measured_apart():
    take(200 * MIB)
    heap.forget_peak()
    if heap._most_before:
        pytest.skip("the peak may not be reset here")
    before = held_bytes()
    take(60 * MIB)
    # Blocks inside count, and nothing from before does.
    with peak_within():
        pass
    assert 55 * MIB < most_held_bytes() - before < 130 * MIB


LEFT_BEHIND = """
from ince import heap
with heap.blocks_apart():
    before = heap.held_bytes()
    blocks = [bytearray(b"x") * 400_000 for _ in range(200)]
    kept = blocks[::20]
    del blocks
    print(heap.held_bytes() - before)
"""


def test_blocks_apart_leave_no_holes():
    if heap._mallopt() is None:
        pytest.skip("another C library")
    # A process of its own: where the heap has room already, nothing is mapped.
    done = subprocess.run(
        [sys.executable, "-c", LEFT_BEHIND], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 20 * MIB  # of 80, and nobody had to be asked to give back


def test_a_choice_of_the_environment_is_left_alone(monkeypatch):
    said = []
    monkeypatch.setattr(heap, "_mallopt", lambda: lambda *option: said.append(option))
    with heap.blocks_apart():
        assert said == [(-3, 256 * 1024)]
    assert said[1:] == [(-3, 32 * MIB)]
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=1")
    with heap.blocks_apart():
        assert len(said) == 2
