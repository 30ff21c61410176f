"""Training on a CPU: ince beside TRL, PEFT and bitsandbytes, and beside the bound of a step.

    python benchmarks/train_cpu.py [--peer-python PATH] [--json FILE] [--only speed,loss]
        [--libraries ince,TRL] [--dtype auto] [--longest 1024] [--steps 8] [--seeds 3]
        [--batch-chats 16] [--loss-chats 64] [--variant NAME:section.key=value,...] [--quick]

SmolLM2-135M-Instruct, LoRA r=16 (alpha 32) on all linear layers, the same chats
(`training/chats.py`), learning rate and seeds for all. Each library trains in a process of its
own; the processes take turns, one optimizer step each:

    ince         NF4, `ince train`: rows packed to 1024 tokens, three of them in a step
    TRL NF4      `SFTTrainer` + PEFT + bitsandbytes as shipped: 16 chats in a step, padded, loss
                 on the assistant's turns, every other setting its default
    TRL 16-bit   the same over a base in the dtype of products
    plain NF4    a loop with PEFT + bitsandbytes: full rows of 256 tokens, four in a forward

    speed    tokens and target tokens in a second, memory, and the share of the bound: the products
             that a step of ince cannot avoid, timed alone in its turn, in a process of its own
    loss     the held-out loss after one pass over the same chats in as many steps, for each seed:
             of the adapters that ince and TRL NF4 saved, read by one scorer, and of the base

Peers are no dependency of ince. An interpreter that has them, beside the packages of this one:

    python -m venv peers
    echo SITE_PACKAGES_OF_INCE > peers/lib/python3.X/site-packages/ince.pth
    peers/bin/pip install --no-deps trl datasets multiprocess dill xxhash pandas aiohttp
    python benchmarks/train_cpu.py --peer-python peers/bin/python

and what of it cannot be imported is left out, with a line that says so. Where a step takes
minutes, `--batch-chats 8` halves it for all libraries. `--dtype auto` is bfloat16
where the processor multiplies it, and float32 elsewhere, for all libraries alike. Variants of ince
show what a feature is worth, such as `--variant "no packing:data.packing=false"`.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from training.chats import make_chats, write_chats
from training.goals import report_loss, report_speed
from training.ince_run import batch_tokens_of_steps
from training.lineup import line_up, parse_variant, peer_versions, runners
from training.machine import machine, occasion, print_facts, product_dtype, versions
from training.measure import Comparison
from training.tiny import tiny_model
from training.turns import Gate, read_spec

MODEL = "smollm2-135m-instruct"
ROWS = {"max_length": 1024, "batch_tokens": 3072, "micro_batch_tokens": 1024}
PLAIN_ROWS = {"row_tokens": 256, "rows_in_forward": 4, "rows_in_step": 12}
BATCH_CHATS = 16
# The tiny model's tokenizer makes twice as many tokens of a text.
QUICK = {"batch_tokens": 1024, "rows_in_forward": 2, "rows_in_step": 4, "batch_chats": 4}
PACKAGES = ("ince", "torch", "transformers", "accelerate")


def settings(arguments, model):
    """What all workers are told."""
    small = QUICK if arguments.quick else {}
    share = arguments.batch_chats / BATCH_CHATS
    rows, plain_rows = dict(ROWS), dict(PLAIN_ROWS)
    rows["batch_tokens"] = max(round(share * rows["batch_tokens"]) // 1024, 1) * 1024
    plain_rows["rows_in_step"] = rows["batch_tokens"] // plain_rows["row_tokens"]
    return {
        **rows,
        **plain_rows,
        "batch_chats": arguments.batch_chats,
        "model": str(model),
        "dtype": product_dtype(arguments.dtype),
        "r": 16,
        "lr": arguments.lr,
        "epochs": 1,
        "max_steps": None,
    } | small


def short_chats(count, seed, model, longest):
    """Chats of at most `longest` tokens, and how long they are."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    kept, lengths = [], []
    for chat in make_chats(3 * count, seed):
        length = len(tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"])
        if length <= longest and len(kept) < count:
            kept.append(chat)
            lengths.append(length)
    if len(kept) < count:
        raise SystemExit(f"only {len(kept)} of {3 * count} chats have at most {longest} tokens")
    return kept, lengths


def describe(lengths):
    """Quantiles of the chats' lengths in tokens."""
    ordered = sorted(lengths)
    at = {q: ordered[min(len(ordered) - 1, len(ordered) * q // 100)] for q in (10, 50, 90)}
    return {"num": len(ordered), "mean": sum(ordered) / len(ordered), "longest": ordered[-1]} | {
        f"p{q}": value for q, value in at.items()
    }


def compared(arguments, place):
    """Everything that is measured, as far as it was asked for."""
    if arguments.quick:
        model = tiny_model(place / "tiny")
    else:
        from ince.models import resolve

        model = resolve(MODEL).folder
    spec = settings(arguments, model)
    variants = [("ince", {}), *map(parse_variant, arguments.variant)]
    libraries = line_up(variants, arguments.peer_python, arguments.libraries)
    comparison = Comparison(Path(__file__), place, spec, libraries)
    steps = arguments.steps + arguments.warm_up
    # Steps of packed rows take a few chats more than padded ones.
    num_timed, num_eval = (steps + 1) * spec["batch_chats"] * 3 // 2, arguments.eval_chats
    chats, lengths = short_chats(
        num_eval + max(num_timed, arguments.loss_chats), 7, model, arguments.longest
    )
    heldout, chats = chats[:num_eval], chats[num_eval:]
    figures = {"dtype": spec["dtype"], "chats": describe(lengths), "lr": spec["lr"]}
    print_facts({"chats": figures["chats"], "products in": spec["dtype"]})
    if "speed" in arguments.only:
        write_chats(place / "speed.jsonl", chats[:num_timed])
        figures["speed"] = comparison.speed(place / "speed.jsonl", steps, warm_up=arguments.warm_up)
        figures["speed_goals"] = report_speed(figures["speed"])
        yield figures
    if "loss" in arguments.only:
        train, held = place / "loss.jsonl", place / "eval.jsonl"
        figures["loss_chats_digest"] = write_chats(train, chats[: arguments.loss_chats])
        write_chats(held, heldout)
        longest = max(lengths[num_eval : num_eval + arguments.loss_chats])
        # As many steps as the peer's, and rows no longer than a chat, to cut them finely.
        rows = {"max_length": longest, "micro_batch_tokens": spec["micro_batch_tokens"]}
        num_steps = -(-arguments.loss_chats // spec["batch_chats"])
        sizes = batch_tokens_of_steps(num_steps, train, spec | rows, range(arguments.seeds))
        figures["loss_steps"] = {"num": num_steps, "batch_tokens": list(sizes.values())}
        ours = {seed: rows | {"batch_tokens": size} for seed, size in sizes.items()}
        figures["loss"] = comparison.losses(train, held, ours)
        figures["loss_goals"] = report_loss(figures["loss"])
        yield figures


def parsed():
    parser = argparse.ArgumentParser(description="training on a CPU, in turns with the peers")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter with the peers")
    parser.add_argument("--only", default="speed,loss", help="sections, with a comma between")
    parser.add_argument("--libraries", default="", help="beginnings of their names, with commas")
    parser.add_argument("--variant", action="append", default=[], metavar="NAME:CHANGES")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--longest", type=int, default=1024, help="tokens of a chat, at most")
    parser.add_argument(
        "--batch-chats", type=int, default=BATCH_CHATS, help="in a step of TRL; all others follow"
    )
    parser.add_argument("--steps", type=int, help="timed, of each library (8)")
    parser.add_argument("--warm-up", type=int, default=1, help="steps that are not counted")
    parser.add_argument("--seeds", type=int, help="runs for the held-out loss (3)")
    parser.add_argument("--loss-chats", type=int, help="chats of such a run (64)")
    parser.add_argument("--eval-chats", type=int, help="chats held out (40)")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it work?")
    parser.add_argument("--worker", nargs=2, metavar=("RUNNER", "SPEC"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name, usual, quick in (
        ("steps", 8, 1),
        ("seeds", 3, 2),
        ("loss_chats", 64, 12),
        ("eval_chats", 40, 4),
    ):
        if getattr(arguments, name) is None:
            setattr(arguments, name, quick if arguments.quick else usual)
    arguments.libraries = tuple(filter(None, arguments.libraries.split(",")))
    arguments.only = arguments.only.split(",")
    unknown = set(arguments.only) - {"speed", "loss"}
    if unknown:
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    return arguments


def main():
    arguments = parsed()
    if arguments.worker:
        runner, path = arguments.worker
        gate = Gate()
        told = runners()[runner](read_spec(path), gate)
        if told is not None:
            gate.done(told)
        return
    facts = {"machine": machine(), "versions": versions(*PACKAGES), **occasion()}
    facts["versions"] |= peer_versions(arguments.peer_python)
    print_facts(facts)
    with tempfile.TemporaryDirectory() as place:
        for figures in compared(arguments, Path(place)):
            if arguments.json:
                # After each section: what comes later may be cut off.
                arguments.json.write_text(json.dumps(facts | figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
