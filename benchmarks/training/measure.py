"""The two measurements of `train_cpu.py`: speed in turns, and the held-out loss of each seed."""

import statistics

from training.turns import Worker

COMPARED = ("ince", "TRL NF4")
"""Whose held-out losses are compared."""


def micro_batches(tokens, targets, count):
    """A step's tokens and targets, in `count` parts as equal as can be."""

    def part(total, number):
        return total * (number + 1) // count - total * number // count

    return [[part(tokens, number), part(targets, number)] for number in range(count)]


class Comparison:
    """Starts the libraries' workers and lets them take turns.

    Args:
        program: that workers are started with.
        place: folder for what they need and write.
        spec: what all of them are told.
        libraries: name → (runner, interpreter, what its spec adds).
    """

    def __init__(self, program, place, spec, libraries):
        self._program, self._place = program, place
        self._spec, self._libraries = spec, libraries

    def _start(self, name, folder, **spec):
        runner, python, changes = self._libraries[name]
        path = self._place / folder / name.replace(" ", "-")
        return Worker(self._program, python, runner, self._spec | changes | spec, path)

    def _start_here(self, runner, **spec):
        import sys

        path = self._place / runner
        return Worker(self._program, sys.executable, runner, self._spec | spec, path)

    # ---------------------------------------------------------------------------------- speed

    def speed(self, train, steps, *, warm_up):
        """Name → {"rates": [...], "memory", …}: one step each, then the next round."""
        workers = {
            name: self._start(name, "speed", train=str(train), seed=0) for name in self._libraries
        }
        seconds = {name: [] for name in workers}
        for number in range(steps):
            for name, worker in workers.items():
                spent, over = worker.turn(1)
                if over:
                    raise SystemExit(f"{name} has no step {number + 1}: too few chats")
                seconds[name] += spent
            print(
                f"  step {number + 1} of {steps}: "
                + ", ".join(f"{name} {each[-1]:.2f} s" for name, each in seconds.items()),
                flush=True,
            )
        for name, worker in workers.items():
            if self._libraries[name][0] == "ince":
                worker.turn(1)  # a step is in its log once the next has begun
        told = {name: worker.stop() for name, worker in workers.items()}
        found = {
            name: _rates(seconds[name][warm_up:], told[name]["counts"][warm_up:steps])
            | {"memory": told[name]["memory"]}
            for name in workers
        }
        for name, each in found.items():
            if self._libraries[name][0] == "ince":
                forwards = told[name]["forwards"][warm_up:steps]
                each["bound"] = self._bound(each, forwards)
        return found

    def _bound(self, rates, forwards):
        """Seconds of the products of each step."""
        worker = self._start_here("bound")
        steps = zip(rates["tokens"], rates["targets"], forwards, strict=True)
        batches = [micro_batches(*counts) for counts in steps]
        worker.ask(micro_batches=batches[0])
        answers = [worker.ask(micro_batches=batch) for batch in batches]
        worker.stop()
        seconds = [answer["seconds"] for answer in answers]
        operations = sum(answer["operations"] for answer in answers)
        return {
            "seconds": seconds,
            "gflops": operations / sum(seconds) / 1e9,
            "tokens_per_second": sum(rates["tokens"]) / sum(seconds),
            "share": sum(seconds) / sum(rates["seconds"]),
        }

    # ----------------------------------------------------------------------------------- loss

    def losses(self, train, held, ours):
        """Held-out losses by library and seed, of the base, and how many targets were learnt.

        Args:
            train, held: files of chats.
            ours: seed of a run → what ince is told of its rows.
        """
        names = [name for name in COMPARED if name in self._libraries]
        adapters = {name: [] for name in names}
        targets = {name: [] for name in names}
        steps = {name: [] for name in names}
        for seed, rows in ours.items():
            for name in names:
                changes = rows if name == "ince" else {}
                worker = self._start(name, f"loss-{seed}", train=str(train), seed=seed, **changes)
                _, over = worker.turn(1 << 30)
                adapters[name].append(over["adapter"])
                targets[name].append(sum(count[1] for count in over["counts"]))
                steps[name].append(len(over["counts"]))
        if len({number for numbers in targets.values() for number in numbers}) > 1:
            raise SystemExit(f"the libraries learn different numbers of tokens: {targets}")
        if len({number for numbers in steps.values() for number in numbers}) > 1:
            raise SystemExit(f"the libraries take different numbers of steps: {steps}")
        scorer = self._start_here("score", eval=str(held))
        base = scorer.ask(adapter=None, quantize="nf4")
        found = {
            name: [scorer.ask(adapter=adapter, quantize="nf4")["loss"] for adapter in of_seeds]
            for name, of_seeds in adapters.items()
        }
        scorer.stop()
        return {
            "base": base["loss"],
            "eval_targets": base["num_targets"],
            "train_targets": targets[names[0]][0] if names else 0,
            "losses": found,
        }


def _rates(seconds, counts):
    tokens, targets, places = (list(column) for column in zip(*counts, strict=True))
    return {
        "seconds": seconds,
        "tokens": tokens,
        "targets": targets,
        "tokens_per_second": sum(tokens) / sum(seconds),
        "targets_per_second": sum(targets) / sum(seconds),
        "places_per_second": sum(places) / sum(seconds),
        # How much steps of one library differ: contents differ, and so does a shared machine.
        "targets_per_second_by_step": [n / s for n, s in zip(targets, seconds, strict=True)],
        "median_step_seconds": statistics.median(seconds),
    }
