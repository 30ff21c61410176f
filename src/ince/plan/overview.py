"""All that ``ince plan`` answers, in one object: methods side by side, and a way to fit.

It parses nothing and prints nothing; what is asked comes as a `Question`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ince.errors import InputError
from ince.plan.devices import Device
from ince.plan.duration import Rate, TimePlan, plan_time
from ince.plan.memory import MemoryPlan, Moment, Overheads, plan_memory
from ince.plan.setup import ACTIVATIONS, METHODS, Method, Setup
from ince.plan.shape import Shape
from ince.plan.solve import Solution, largest_length, largest_rows, smallest_device, solve

__all__ = ["Overview", "Question", "overview"]

_MOST_PRICE = 1e6


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        shape: of the model.
        setup: as it would be trained.
        device: in words.
        overheads: of that device.
        limit_bytes: that it may take; None: it is not asked whether it fits.
        rate: of the device; None: no time is planned.
        num_tokens: of the run; None: not said.
        price: of an hour of one device; None: not said.
    """

    shape: Shape
    setup: Setup
    device: str
    overheads: Overheads
    limit_bytes: int | None = None
    rate: Rate | None = None
    num_tokens: int | None = None
    price: float | None = None

    def __post_init__(self) -> None:
        if self.price is not None and not 0 <= self.price <= _MOST_PRICE:
            raise InputError(
                "not the price of an hour",
                where="--price",
                got=self.price,
                expected=f"0 to {_MOST_PRICE:,.0f}",
            )
        if self.num_tokens is not None and self.num_tokens < 1:
            raise InputError("a run has at least one token", where="--tokens", got=self.num_tokens)
        if self.limit_bytes is not None and self.limit_bytes < 1:
            raise InputError("no memory, no run", where="--memory", got=self.limit_bytes)
        self._check_rank()

    def _check_rank(self) -> None:
        if self.setup.method == "full":
            return
        chosen = self.setup.adapted
        names = self.shape.linear_names if chosen is None else {each.name for each in chosen}
        for matrix in self.shape.matrices:
            largest = max(matrix.num_in, matrix.num_out)
            if matrix.name in names and self.setup.r > largest:
                raise InputError(
                    f"{matrix.name} of {self.shape.name} has a rank of at most {largest:,}",
                    where="the rank of the adapters",
                    got=self.setup.r,
                )


@dataclass(frozen=True)
class Overview:
    """The answers.

    Attributes:
        question: that was asked.
        memory: by method.
        time: by method; empty without a rate.
        choices: peaks by method and by what is kept of activations, as far as the device can.
        solution: what fits within the limit; None without one.
        solution_time: of it.
        most_rows: of a forward that fits then; most_length: of one row.
        smallest: device of the table that holds the solution, or what was asked.
    """

    question: Question
    memory: Mapping[Method, MemoryPlan]
    time: Mapping[Method, TimePlan]
    choices: Mapping[Method, Mapping[str, Moment]]
    solution: Solution | None
    solution_time: TimePlan | None
    most_rows: int | None
    most_length: int | None
    smallest: Device | None

    def to_dict(self) -> dict[str, object]:
        """JSON values."""
        asked = self.question
        counts = asked.shape.counts
        return {
            "model": asked.shape.name,
            "num_parameters": counts.total,
            "parameters": {
                "linear": counts.linear,
                "embedding": counts.embedding,
                "head": counts.head,
                "norms": counts.norms,
                "biases": counts.biases,
                "positions": counts.positions,
            },
            "device": asked.device,
            "limit_bytes": asked.limit_bytes,
            "setup": _setup_facts(asked.setup),
            "methods": {
                name: {
                    **plan.to_dict(),
                    "fits": None
                    if asked.limit_bytes is None
                    else plan.peak.total <= asked.limit_bytes,
                    "by_activations": {
                        choice: {
                            "peak_bytes": peak.total,
                            "activation_bytes": peak.parts.get("activations", 0),
                            "peak_at": peak.name,
                        }
                        for choice, peak in self.choices[name].items()
                    },
                    "time": self.time[name].to_dict() if name in self.time else None,
                }
                for name, plan in self.memory.items()
            },
            "solution": None if self.solution is None else self._solution_facts(self.solution),
            "smallest_device": None if self.smallest is None else self.smallest.name,
        }

    def _solution_facts(self, solution: Solution) -> dict[str, object]:
        return {
            "setup": _setup_facts(solution.setup),
            **solution.plan.to_dict(),
            "measures": [
                {
                    "name": each.name,
                    "keys": dict(each.keys),
                    "saved_bytes": each.saved_bytes,
                    "time_factor": each.time_factor,
                    "changes_result": each.changes_result,
                }
                for each in solution.measures
            ],
            "most_rows": self.most_rows,
            "most_length": self.most_length,
            "time": None if self.solution_time is None else self.solution_time.to_dict(),
        }


def _setup_facts(setup: Setup) -> dict[str, object]:
    return {
        "method": setup.method,
        "r": setup.r,
        "num_rows": setup.num_rows,
        "length": setup.length,
        "value_bits": 8 * setup.value_bytes,
        "activations": setup.activations,
        "optimizer": setup.optimizer,
        "quantize_head": setup.quantize_head,
        "num_devices": setup.num_devices,
    }


def overview(question: Question) -> Overview:
    """Answer it.

    Raises:
        InputError: nothing makes the model fit within the limit.
    """
    shape, setup, overheads = question.shape, question.setup, question.overheads
    setups: dict[Method, Setup] = {name: setup.with_changes(method=name) for name in METHODS}

    def timed(one: Setup) -> TimePlan | None:
        if question.rate is None:
            return None
        tokens, price = question.num_tokens, question.price
        return plan_time(shape, one, question.rate, num_tokens=tokens, price=price)

    solution = rows = length = None
    limit = question.limit_bytes
    if limit is not None:
        solution = solve(shape, setup, limit, overheads)
        rows = largest_rows(shape, solution.setup, limit, overheads)
        length = largest_length(shape, solution.setup, limit, overheads)
    chosen = setup if solution is None else solution.setup
    memory: dict[Method, MemoryPlan] = {}
    times: dict[Method, TimePlan] = {}
    for name, one in setups.items():
        memory[name] = plan_memory(shape, one, overheads)
        if (time := timed(one)) is not None:
            times[name] = time
    on_cpu = setup.on_cpu
    choices: dict[Method, dict[str, Moment]] = {
        name: {
            choice: plan_memory(shape, one.with_changes(activations=choice), overheads).peak
            for choice in ACTIVATIONS
            if not (choice == "offload" and on_cpu)  # there is nowhere else to put them
        }
        for name, one in setups.items()
    }
    return Overview(
        question,
        memory,
        times,
        choices,
        solution,
        None if solution is None else timed(solution.setup),
        rows,
        length,
        smallest_device(shape, chosen, overheads),
    )
