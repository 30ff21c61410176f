"""The benchmarks of serving run, and write every figure they promise, on a tiny model."""

import pytest

TIMES = ("first_token_p50", "first_token_p99", "between_p50", "between_p99")


@pytest.mark.long
def test_serving_is_measured_alone_and_beside_peft(figures_of):
    sections = "adapters,beginnings,load,registry,swap,peft,profile,llama.cpp"
    figures, said = figures_of("serve", "--only", sections, timeout=180)
    rounds = figures["adapters"]["rounds"]
    assert set(rounds) == {"0", "1", "4"}
    for each in (rounds["0"][0], *figures["load"]["shares"].values()):
        assert each["requests"] == 10
        assert all(each[key] > 0 for key in TIMES)
    assert figures["registry"]["sets"]["24"]["loads"] >= figures["registry"]["sets"]["24"]["asked"]
    assert 0 < figures["swap"]["acquire_ms"] < 100
    # Whatever the order of its batches, PEFT says what ince says.
    peft = figures["peft"]["rounds"]
    assert len(peft) == 4
    assert all(each[0]["equal_answers"] == 10 for name, each in peft.items() if name != "ince")
    assert sum(figures["profile"]["parts"].values()) == pytest.approx(1)
    assert "left out: neither --llama-server" in said


@pytest.mark.long
def test_the_gpu_program_runs_its_tiny_case_on_a_cpu(figures_of):
    figures, said = figures_of("serve_gpu", "--device", "cpu", timeout=120)
    assert figures["of_base"]["4"] > 0
    assert "shows that the program works" in said
