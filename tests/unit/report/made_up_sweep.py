"""A sweep's folder as ``ince sweep`` leaves it, made up: nine candidates, one of which failed."""

import json
import math

RATES, RANKS, NUM_STEPS = ("2e-4", "1e-3", "1e-2"), ("8", "16", "64"), 90


def level(rank, rate):
    """The loss that a candidate ends at."""
    return 1.0 + abs(math.log10(float(rate) / 1e-3)) + 1 / float(rank)


def write_run(folder, rank, rate, steps, evaluated):
    folder.mkdir(parents=True)
    lines = []
    for step in range(1, steps + 1):
        loss = level(rank, rate) + 3 * math.exp(-step / 12) + 0.2 * math.sin(7 * step)
        lines.append({"step": step, "loss": loss, "lr": float(rate)})
        if step in evaluated:
            lines.append({"step": step, "eval_loss": level(rank, rate) + 3 * math.exp(-step / 12)})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "log.jsonl").write_text(text, encoding="utf-8")


def content(**changes):
    candidates = []
    for rank in RANKS:
        for rate in RATES:
            end = {"1e-3": 30, "2e-4": 10, "1e-2": 10}[rate]
            end = NUM_STEPS if (rank, rate) == ("64", "1e-3") else end
            losses = [
                level(rank, rate) + 3 * math.exp(-step / 12) for step in (10, 30, 90) if step <= end
            ]
            failed = (rank, rate) == ("64", "1e-2")
            candidates.append(
                {
                    "name": f"r={rank},lr={rate}",
                    "values": {"lora.r": rank, "train.lr": rate},
                    "num_steps": NUM_STEPS,
                    "status": "failed" if failed else "done" if end == NUM_STEPS else "stopped",
                    "losses": [] if failed else losses,
                    "steps": 0 if failed else end,
                    "train_loss": None if failed else losses[-1] - 0.1,
                    "tokens_per_second": None if failed else 341.25,
                    "peak_bytes": None if failed else 2_150_000_000,
                    "seconds": 12.5,
                    "starts": 0,
                    "error": {"type": "TrainingError", "what": "loss is not finite at step 7"}
                    if failed
                    else None,
                }
            )
    return {
        "format": "ince-sweep/1",
        "status": "done",
        "created": "2026-03-01T12:00:00+00:00",
        "recipe": "recipe.yaml",
        "keys": ["lora.r", "train.lr"],
        "eta": 3,
        "min_steps": 10,
        "rungs": [
            {"share": [1, 9], "num_candidates": 9},
            {"share": [1, 3], "num_candidates": 3},
            {"share": [1, 1], "num_candidates": 1},
        ],
        "candidates": candidates,
        "best": "r=64,lr=1e-3",
        "remarks": [],
    } | changes


def write_sweep(folder, **changes):
    """Write the state and the logs; returns the folder."""
    state = content(**changes)
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps(state), encoding="utf-8")
    for each in state["candidates"]:
        if each["losses"]:
            rank, rate = each["values"]["lora.r"], each["values"]["train.lr"]
            write_run(folder / each["name"], rank, rate, each["steps"], {10, 30, 90})
    return folder
