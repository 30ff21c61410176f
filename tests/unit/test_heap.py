from pathlib import Path

from ince import heap


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_freed_pages_between_kept_ones_go_back():
    if heap._trim() is None:  # a C library without it: nothing to give back, and no error
        assert heap.give_back() is None
        return
    # Small enough for the heap, with one kept in each hundred: the heap's end cannot move.
    blocks = [bytearray(64_000) for _ in range(3_000)]
    kept = blocks[::100]
    full = resident_bytes()
    del blocks
    heap.give_back()
    assert len(kept) == 30
    assert resident_bytes() < full - 100_000_000


def test_without_such_a_library_nothing_happens(monkeypatch):
    monkeypatch.setattr(heap, "_trim", lambda: None)
    heap.give_back()
