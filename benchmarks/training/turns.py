"""Training runs that take turns: each in a process of its own, one at work at a time.

A worker trains as its library does and is held at the end of optimizer steps by a hook that torch
calls for every optimizer, so that no library is told that it is timed. `Gate` is the worker's
side, `Worker` the program's. They talk in lines of JSON: ``{"go": steps}`` down, and up
``{"ready"}``, ``{"steps": [...]}``, ``{"done": ...}``.

A step lasts from the end of the one before to its own end, so that reading data, forward,
backward, update and whatever a trainer does between steps are in it.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path


class Gate:
    """In a worker: holds the training run at the end of its turn."""

    def __init__(self):
        # What libraries print must not come between the lines of JSON.
        self._up = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._left = 0
        self._since = 0.0
        self._seconds = []

    def tell(self, **message):
        self._up.write(json.dumps(message) + "\n")
        self._up.flush()

    def _asked(self):
        """What the program wants next; leaves when it is gone."""
        line = sys.stdin.readline()
        if not line:
            sys.exit("the program that started this is gone")
        return json.loads(line)

    def open(self):
        """Say that all is ready, and wait for the first turn."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        register_optimizer_step_post_hook(self._stepped)
        self.tell(ready=True)
        self._begin(self._asked())

    def _begin(self, message):
        self._left, self._seconds = message["go"], []
        self._since = time.perf_counter()

    def _stepped(self, *_):
        now = time.perf_counter()
        self._seconds.append(now - self._since)
        self._since = now
        self._left -= 1
        if self._left == 0:
            self.tell(steps=self._seconds)
            self._begin(self._asked())

    def serve(self, answer):
        """For work that is no training run: answer each turn's message until told to stop."""
        self.tell(ready=True)
        while "stop" not in (message := self._asked()):
            self.tell(**answer(message))


class Worker:
    """A run in a process of its own, that works when it is its turn."""

    def __init__(self, program, python, name, spec, folder):
        """Start it; `spec` is written into `folder`, and so is what it prints."""
        self.name = name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
        self._log = folder / "log.txt"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [str(python), str(program), "--worker", name, str(folder / "spec.json")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            )
        self._answer("ready")

    def _answer(self, key):
        while line := self._process.stdout.readline():
            message = json.loads(line)
            if key in message:
                return message
        said = self._log.read_text(encoding="utf-8", errors="replace")
        self._process.wait()
        raise SystemExit(f"{self.name} ended with {self._process.returncode}\n{said[-4000:]}")

    def turn(self, steps):
        """Let it do `steps` steps; the seconds of each."""
        self._send(go=steps)
        return self._answer("steps")["steps"]

    def ask(self, **message):
        """Of a worker that serves: its answer."""
        self._send(**message)
        return self._answer("answer")["answer"]

    def finish(self):
        """Let it go on to its end; what it says of its run."""
        self._send(go=1 << 30)
        done = self._answer("done")["done"]
        self._process.wait()
        return done

    def stop(self):
        """End a worker that serves."""
        self._send(stop=True)
        self._process.wait()

    def _send(self, **message):
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()


def read_spec(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))
