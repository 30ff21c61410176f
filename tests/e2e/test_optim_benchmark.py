"""The benchmark of optimizers runs, and writes every figure it promises, on a tiny model."""

import pytest


@pytest.mark.long
@pytest.mark.timeout(300)
def test_tiers_disk_and_eight_bits_are_measured(figures_of):
    options = ["--rounds", "1", "--rows", "1x64", "--shares", "100,10"]
    # Seven processes one after the other: half a minute, and several where a machine is shared.
    figures, said = figures_of("optim", *options, timeout=280)
    paged = figures["paged"]
    in_file = [paged[f"{share}% in memory"]["file_bytes"] for share in (100, 10)]
    assert in_file == sorted(in_file)
    assert in_file[0] == 0 < in_file[1]
    assert all(each["seconds"][0] > 0 for each in paged.values())
    names = ("update", "cached_copy", "direct_copy")
    assert all(figures["disk"][f"{name}_bytes_per_second"][0] > 0 for name in names)
    assert set(figures["8bit"]) == {"torch AdamW", "ince 8-bit", "bitsandbytes 8-bit"}
    assert "goal at 10%" in said
