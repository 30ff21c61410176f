"""`benchmarks/nf4_quality.py --quick` writes what it promises.

Which format is better in perplexity is not judged: the model is a tiny one, drawn at random.
"""

import math

import pytest

SHIPPED = ("NF4", "NF4 + DQ", "NF4 + DQ, searched", "FP4", "INT4")


@pytest.mark.long
def test_every_format_has_its_error_and_its_perplexity(figures_of):
    figures, _ = figures_of("nf4_quality", timeout=600)
    errors = figures["error"]
    # Of normal weights the order does not hang on the draw.
    mse = {name: errors[name]["normal"]["mse"] for name in SHIPPED}
    assert mse["NF4 + DQ, searched"] < mse["NF4"] < mse["INT4"] < mse["FP4"]
    for kind in ("english", "turkish"):
        table = figures["perplexity"][kind]["formats"]
        assert set(SHIPPED) < set(table)
        for name in SHIPPED:
            assert 1 < table[name]["filed"]["perplexity"] < math.inf
            assert table[name]["divergence_filed"]["mean"] > 0
