import dataclasses
import io

import pytest
from rich.console import Console

from ince.environment import Backend, Unknown, read_environment
from ince.environment.accelerators import Accelerator
from ince.report.environment_terminal import environment_lines

GIB = 2**30


def printed(found, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    for line in environment_lines(found):
        console.print(line)
    return console.export_text()


def words(found, width=80):
    return " ".join(printed(found, width).split())


@pytest.fixture(scope="module")
def machine():
    found = read_environment()
    processor = dataclasses.replace(
        found.processor,
        name="A Processor",
        num_cores=2,
        num_cores_of_machine=2,
        instruction_sets={"AVX2": True, "AMX": False},
    )
    backends = (
        Backend("cpu", "cpu", "AVX2", None),
        Backend("cuda", "reference", "plain PyTorch", "Triton is not installed"),
    )
    return dataclasses.replace(found, processor=processor, backends=backends)


def test_what_there_is(machine):
    text = words(machine, width=200)
    assert "A Processor" in text
    assert "2 cores; AVX2, no AMX" in text
    assert "cuda reference plain PyTorch Triton is not installed" in text
    assert machine.versions["torch"] in text


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal(machine, width):
    long = dataclasses.replace(machine, backends=(Backend("cpu", "x", "word " * 40, "why " * 60),))
    assert max(map(len, printed(long, width).splitlines())) <= width


def test_fewer_cores_than_the_machine_has(machine):
    few = dataclasses.replace(machine.processor, num_cores=1, num_cores_of_machine=64)
    assert "1 of 64 cores" in words(dataclasses.replace(machine, processor=few), 200)


def test_a_gpu(machine):
    gpu = Accelerator("cuda:0", "NVIDIA H200", 140 * GIB, 130 * GIB, "9.0")
    accelerators = dataclasses.replace(
        machine.accelerators, devices=(gpu,), runtime="CUDA 12.8", none_because=None
    )
    text = words(dataclasses.replace(machine, accelerators=accelerators), 200)
    assert "cuda:0 NVIDIA H200 130 GiB of 140 GiB compute capability 9.0" in text
    assert "CUDA 12.8" in text
    assert "no GPU" not in text


def test_what_is_unknown_is_said_with_its_reason(machine):
    why = Unknown("the [bold]disk[/] hides")
    text = words(
        dataclasses.replace(
            machine,
            backends=why,
            versions=why,
            processor=dataclasses.replace(
                machine.processor, name=why, num_cores=why, instruction_sets=why
            ),
            memory=dataclasses.replace(machine.memory, free_bytes=why),
            accelerators=dataclasses.replace(machine.accelerators, devices=why),
            threads=dataclasses.replace(machine.threads, inside_operations=why),
            cache=dataclasses.replace(machine.cache, folder=why),
        ),
        400,
    )
    assert text.count("unknown: the [bold]disk[/] hides") == 9


def test_the_home_folder_is_not_spelled_out(machine, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    inside = dataclasses.replace(machine.cache, folder=tmp_path / ".cache" / "ince")
    text = words(dataclasses.replace(machine, cache=inside), 200)
    assert "~/.cache/ince" in text
    assert str(tmp_path) not in text


def test_a_name_cannot_move_the_cursor(machine):
    named = dataclasses.replace(machine.processor, name="evil\x1b[2Jname")
    assert "\x1b" not in printed(dataclasses.replace(machine, processor=named))
