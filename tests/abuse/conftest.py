"""Run hostile examples where they can take neither memory nor time from the others."""

import multiprocessing
import random
import resource
import subprocess
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ince.errors import InceError

MIB = 1 << 20


def mutated(valid: bytes, dice: random.Random) -> bytes:
    """`valid` with a few things wrong: bits, lengths, pieces that are gone or stand twice."""
    data = bytearray(valid)
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        # Headers stand first, and most of what can go wrong is in them.
        at = int(len(data) * dice.random() ** dice.choice((1, 4)))
        match dice.randrange(7):
            case 0:
                del data[at:]
            case 1 if data:
                data[at % len(data)] ^= 1 << dice.randrange(8)
            case 2:
                data[at : at + 8] = dice.choice(
                    (0, 1, 255, 2**31, 2**32 - 1, 2**56, 2**60, 2**63, 2**64 - 1, len(data))
                ).to_bytes(8, "little")
            case 3:
                data[at : at + 4] = dice.choice((0, 1, 8, 9, 2**31, 2**32 - 1)).to_bytes(
                    4, "little"
                )
            case 4:
                del data[at : at + dice.randrange(1, 40)]
            case 5:
                data[at:at] = data[at : at + dice.randrange(1, 80)]
            case _:
                data[at : at + 16] = dice.randbytes(dice.randrange(17))
    return bytes(data)


def _examples(
    attempt: Callable[[random.Random], object], seconds: float, extra_bytes: int, pipe
) -> None:
    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + extra_bytes, used + extra_bytes))
    started, seed, refused = time.monotonic(), 0, 0
    try:
        while time.monotonic() - started < seconds:
            try:
                attempt(random.Random(seed))
            except InceError as error:
                _ = str(error)  # what is said can be written down
                refused += 1
            seed += 1
    except BaseException:
        pipe.send(f"seed {seed}\n{traceback.format_exc()}")
    else:
        pipe.send((seed, refused))


@pytest.fixture
def survives():
    """A function that tries examples in a process of little memory, for some seconds.

    Only errors of ince may come out of an example. It is given its own dice. Returns how
    many were tried, and how many of them were refused.
    """
    if not Path("/proc/self/statm").exists():
        pytest.skip("the memory of a process can be limited on Linux only")

    def run(
        attempt: Callable[[random.Random], object], seconds: float, extra_bytes: int = 64 * MIB
    ) -> tuple[int, int]:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_examples, args=(attempt, seconds, extra_bytes, theirs))
        child.start()
        theirs.close()
        try:
            assert ours.poll(seconds * 4 + 60), "an example does not end"
            told = ours.recv()
        except EOFError:
            told = "the process ended without a word"
        finally:
            child.kill()
            child.join()
        assert not isinstance(told, str), told
        return told

    return run


@pytest.fixture
def mutate():
    """The function that spoils valid bytes."""
    return mutated


@pytest.fixture
def small_disk(tmp_path, request):
    """A folder on a file system of so many bytes as the test's module calls SIZE."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = f"size={request.module.SIZE}"
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if mounted.returncode:
        pytest.skip(f"a file system may not be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
