"""The benchmark of optimizers runs, and writes every figure it promises, on a tiny model."""

import pytest


@pytest.mark.long
def test_tiers_disk_and_eight_bits_are_measured(figures_of):
    options = ["--rounds", "1", "--rows", "1x64"]
    figures, said = figures_of("optim", *options, timeout=110)
    paged = figures["paged"]
    in_file = [paged[f"{share}% in memory"]["file_bytes"] for share in (100, 25, 10, 0)]
    assert in_file == sorted(in_file)
    assert in_file[0] == 0 < in_file[1]
    assert all(each["seconds"][0] > 0 for each in paged.values())
    names = ("update", "cached_copy", "direct_copy")
    assert all(figures["disk"][f"{name}_bytes_per_second"][0] > 0 for name in names)
    assert set(figures["8bit"]) == {"torch AdamW", "ince 8-bit", "bitsandbytes 8-bit"}
    assert "goal at 10%" in said
