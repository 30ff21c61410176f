"""A program that sits down to one run again and again, and is killed as it was told to be.

    python killed_sittings.py RECIPE ERRORS

reads a line for each sitting, and answers with one:

    {"output": "runs/cut", "kind": "backward", "call": 7}   killed in the 7th piece of backward
    {"output": "runs/cut", "kind": "clock", "seconds": 0.1} killed so long after a step began
    {"output": "runs/whole"}                                not killed
    → {"killed": "backward" | null, "exit": 0 | null}

Everything is imported once. Each sitting is a fork, in which the command itself is called as
from a shell, its lines going to the file ERRORS. It dies by SIGKILL: no handler, no cleaning up.
"""

import functools
import json
import os
import select
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers.models.llama import modeling_llama

import ince.files
import ince.recipe.run
import ince.recipe.session
import ince.report
import ince.train.run
from ince.cli import app
from ince.cli import train as _train  # noqa: F401  imported here, so that no sitting has to
from ince.train.average import AdapterAverage
from ince.train.log import RunLog

STARTED = "started"


class Killer:
    """Dies when something has happened so many times."""

    def __init__(self, pipe, kind, call):
        self.pipe, self.kind, self.left = pipe, kind, call
        self.inside = set()

    def die(self):
        os.write(self.pipe, f"{self.kind}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)

    def is_next(self, kind):
        if kind != self.kind:
            return False
        self.left -= 1
        return self.left == 0

    def moment(self, kind):
        if self.is_next(kind):
            self.die()

    @contextmanager
    def during(self, what):
        self.inside.add(what)
        try:
            yield
        finally:
            self.inside.discard(what)

    def around(self, owner, name, before):
        """Put a function before `owner.name`; it may die, or return a context to be in."""
        real = getattr(owner, name)

        @functools.wraps(real)
        def wrapped(*arguments, **options):
            context = before(*arguments, **options)
            if context is None:
                return real(*arguments, **options)
            with context:
                return real(*arguments, **options)

        setattr(owner, name, wrapped)
        return real

    # ------------------------------------------------------------------------- what is watched

    def watch(self):
        self.watch_steps()
        self.watch_saving()

    def watch_steps(self):
        hooked = []

        def backward(run):
            if not hooked:
                os.write(self.pipe, f"{STARTED}\n".encode())
                hooked.extend(
                    each.register_post_accumulate_grad_hook(
                        lambda _each: "step" in self.inside and self.moment("backward")
                    )
                    for each in run.parameters.values()
                )
            return self.during("step")

        def layer(*_arguments, **_options):
            if "step" in self.inside:
                self.moment("forward")
            if "evaluation" in self.inside:
                self.moment("evaluation")

        self.around(ince.train.run.TrainRun, "backward", backward)
        self.around(modeling_llama.LlamaDecoderLayer, "forward", layer)
        self.around(torch.Tensor, "addcdiv_", lambda *_, **__: self.moment("update"))
        self.around(AdapterAverage, "update", lambda *_: self.moment("average"))
        self.around(ince.recipe.session, "heldout_loss", lambda *_, **__: self.during("evaluation"))

    def watch_saving(self):
        def write_group(path, tensors):
            if self.is_next("writing"):
                real(path, tensors)
                os.truncate(path, Path(path).stat().st_size // 2)
                self.die()

        def rmtree(folder, *_arguments, **_options):
            if "saving" in self.inside and self.is_next("removing"):
                next(Path(folder).iterdir()).unlink()
                self.die()

        def verify(_folder):
            if "saving" in self.inside:
                self.moment("reading back")

        def flush(log):
            if self.is_next("logging"):
                os.write(log._stream.fileno(), log._waiting[: len(log._waiting) // 2])
                self.die()

        def sync(_path):
            if "saving" in self.inside:
                self.moment("syncing")

        real = self.around(ince.train.checkpoint, "write_group", write_group)
        self.around(ince.train.run, "save_checkpoint", lambda *_, **__: self.during("saving"))
        self.around(ince.train.run, "remove_old", lambda *_, **__: self.during("saving"))
        self.around(ince.train.checkpoint, "_verify", verify)
        self.around(ince.files.shutil, "rmtree", rmtree)
        self.around(ince.files, "_sync", sync)
        self.around(RunLog, "_flush", flush)
        self.watch_renaming()

    def watch_renaming(self):
        real = Path.replace

        def replace(path, target):
            kind = "renaming" if "saving" in self.inside else "result"
            watched = kind == "renaming" or "adapter" in Path(target).parts
            if watched:
                self.moment(kind)
            done = real(path, target)
            if watched:
                self.moment(kind)
            return done

        Path.replace = replace


def sit(recipe, errors, pipe, order):
    """The command, in this process; does not return."""
    with errors.open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    Killer(pipe, order.get("kind"), order.get("call", 0)).watch()
    code = 70
    try:
        code = app.main(["train", recipe, f"output={order['output']}"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 70)


def lines_of(pipe, child, seconds):
    """What the child said until it ended; killed by the clock, where `seconds` are given."""
    said = b""
    kill_at = None
    while True:
        wait = None if kill_at is None else max(0.0, kill_at - time.monotonic())
        if not select.select([pipe], [], [], wait)[0]:
            os.kill(child, signal.SIGKILL)
            kill_at = None
            said += b"clock\n"
            continue
        found = os.read(pipe, 4096)
        if not found:
            return said.decode().splitlines()
        said += found
        if seconds is not None and kill_at is None:
            kill_at, seconds = time.monotonic() + seconds, None


def main(recipe, errors):
    for line in sys.stdin:
        order = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            sit(recipe, Path(errors), writer, order)
        os.close(writer)
        said = lines_of(reader, child, order.get("seconds"))
        os.close(reader)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        answer = {
            "killed": said[-1] if killed else None,
            "exit": None if killed else os.waitstatus_to_exitcode(status),
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
