"""Training runs that take turns: each in a process of its own, one at work at a time.

A worker trains as its library does and is held at the end of optimizer steps by a hook that torch
calls for every optimizer, so that no library is told that it is timed. `Gate` is the worker's
side, `Worker` the program's. They talk in lines of JSON: ``{"go": steps}`` and ``{"stop": true}``
down, ``{"ready": true}``, ``{"steps": [seconds, …]}`` and ``{"done": {…}}`` up.

A step lasts from the end of the one before to its own end, so that reading data, forward,
backward, update and whatever a trainer does between steps are in it.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from training.memory import PeakMemory


class Gate:
    """In a worker: holds the training run at the end of its turn."""

    def __init__(self):
        # What libraries print must not come between the lines of JSON.
        self._up = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._memory = PeakMemory()
        self._facts = dict
        self._left = 0
        self._since = 0.0
        self._seconds = []

    def _tell(self, **message):
        self._up.write(json.dumps(message) + "\n")
        self._up.flush()

    def _asked(self):
        """What the program wants next; leaves when it is gone."""
        line = sys.stdin.readline()
        if not line:
            sys.exit("the program that started this is gone")
        return json.loads(line)

    def open(self, facts):
        """Say that all is ready, and wait for the first turn.

        Args:
            facts: gives what is told of a run that is stopped before its end.
        """
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self._facts = facts
        self._hook = register_optimizer_step_post_hook(self._stepped)
        self._tell(ready=True)
        self._begin(self._asked())

    def _begin(self, message):
        if "stop" in message:
            self.done(self._facts())
            sys.exit()
        self._left, self._seconds = message["go"], []
        self._since = time.perf_counter()

    def _stepped(self, *_):
        now = time.perf_counter()
        self._seconds.append(now - self._since)
        self._since = now
        self._left -= 1
        if self._left == 0:
            self._tell(steps=self._seconds)
            self._begin(self._asked())

    def close(self):
        """The last step is done: what follows is not timed, and takes no part in the memory."""
        self._hook.remove()
        self._peaks = self._memory.figures()

    def done(self, facts):
        """Tell what there is to tell of the run."""
        peaks = getattr(self, "_peaks", None) or self._memory.figures()
        self._memory.stop()
        self._tell(done=facts | {"memory": peaks, "steps": self._seconds})

    def serve(self, answer):
        """For work that is no training run: answer each message until told to stop."""
        self._tell(ready=True)
        while "stop" not in (message := self._asked()):
            self._tell(answer=answer(**message))
        self._memory.stop()


class Worker:
    """A run in a process of its own, that works when it is its turn."""

    def __init__(self, program, python, runner, spec, folder):
        """Start it; `spec` is written into `folder`, and so is what it prints."""
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "log.txt"
        path = folder / "spec.json"
        path.write_text(json.dumps(spec | {"folder": str(folder)}), encoding="utf-8")
        settings = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [str(python), str(program), "--worker", runner, str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | settings | spec.get("env", {}),
            )
        self._answer("ready")

    def _answer(self, *keys):
        while line := self._process.stdout.readline():
            message = json.loads(line)
            if any(key in message for key in keys):
                return message
        self._process.wait()
        said = self._log.read_text(encoding="utf-8", errors="replace")
        raise SystemExit(f"{self._log.parent.name} ended early\n{said[-4000:]}")

    def turn(self, steps):
        """Let it do some steps: (seconds of each, what it tells of the run if that is over)."""
        self._send(go=steps)
        message = self._answer("steps", "done")
        if "done" in message:
            self._process.wait()
            return message["done"]["steps"], message["done"]
        return message["steps"], None

    def ask(self, **message):
        """Of a worker that serves: its answer."""
        self._send(**message)
        return self._answer("answer")["answer"]

    def stop(self):
        """End it before its end; what a training run tells of itself until here."""
        self._send(stop=True)
        told = self._process.stdout.read()
        self._process.wait()
        return json.loads(told.splitlines()[-1])["done"] if told else None

    def _send(self, **message):
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()


def read_spec(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))
