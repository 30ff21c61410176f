"""A program that trains while memory really runs out: the address space of a process is limited.

    python scarce_memory.py FOLDER

Prints a JSON object, by case: what was said, what came out, or the error. Each case is a fork.
"""

import contextlib
import json
import os
import resource
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from ince.data import Example, collate
from ince.errors import InceError
from ince.evaluate import heldout_loss
from ince.infer import Parts
from ince.lora import LoraConfig, get_peft_model
from ince.train import TrainConfig, train

MIB = 1 << 20
LENGTH = 256
WIDE = 2048  # 2 MiB a row for each tensor of a feed-forward block


def allow(num_bytes):
    """From here on, so much more address space and no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def examples(num, seed):
    generator = torch.Generator().manual_seed(seed)
    targets = (*[False] * (LENGTH // 2), *[True] * (LENGTH // 2))
    return [
        Example(
            tuple(torch.randint(3, 200, (LENGTH,), generator=generator).tolist()),
            targets,
            f"data.jsonl:{i + 1}",
        )
        for i in range(num)
    ]


class Observer:
    """Limits memory after a step."""

    def __init__(self, at, num_bytes):
        self.at, self.num_bytes, self.lines, self.losses = at, num_bytes, [], []

    def started(self, first_step, num_steps):
        pass

    def stepped(self, report):
        if report.step == self.at:
            allow(self.num_bytes)

    def evaluated(self, step, loss):
        self.losses.append(loss)

    def said(self, line):
        self.lines.append(line)


def run(folder, *, rows_in_step=16, at=None, num_bytes=None, rows_in_evaluation=0, **changes):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=200,
        hidden_size=32,
        intermediate_size=WIDE,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
    )
    base = LlamaForCausalLM(config).requires_grad_(False).eval()
    model = get_peft_model(base, LoraConfig(r=2))
    # Libraries take address space at their first use.
    model(input_ids=torch.ones(1, 8, dtype=torch.int64)).logits.sum().backward()
    model.zero_grad()
    observer = Observer(at, num_bytes)
    evaluate = None
    if rows_in_evaluation:
        batch = collate(examples(rows_in_evaluation, seed=1), 2)
        parts = Parts(what="the held-out loss", say=observer.said)

        def evaluate():
            return heldout_loss(model.get_base_model(), [batch], parts=parts).loss

    if at == 0:
        allow(num_bytes)
    result = {}
    try:
        train(
            model,
            examples(3 * rows_in_step, seed=0),
            TrainConfig(**({"batch_tokens": rows_in_step * LENGTH, "lr": 1e-3} | changes)),
            run_dir=folder,
            recipe_digest="d",
            packing=False,
            max_length=LENGTH,
            pad_id=2,
            observer=observer,
            evaluate=evaluate,
        )
    except InceError as error:
        result["error"] = error.to_dict()
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    learnt = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    save_file(learnt, folder / "learnt.safetensors")
    log = (folder / "log.jsonl").read_text("utf-8").splitlines()
    events = [line for line in map(json.loads, log) if "event" in line]
    return result | {"lines": observer.lines, "losses": observer.losses, "events": events}


CASES = {
    "plain": {},
    "probe": {"at": 0, "num_bytes": 90 * MIB},
    "step": {"at": 1, "num_bytes": 90 * MIB},
    "one row": {"at": 1, "num_bytes": 4 * MIB},
    "one row at first": {"at": 0, "num_bytes": 4 * MIB},
    "small": {"rows_in_step": 2, "rows_in_evaluation": 24, "eval_every": 2},
    "evaluation": {
        "rows_in_step": 2,
        "rows_in_evaluation": 24,
        "eval_every": 2,
        "at": 1,
        "num_bytes": 90 * MIB,
    },
}


def main(folder):
    for name, case in CASES.items():
        place = Path(folder) / name
        place.mkdir()
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                (place / "result.json").write_text(json.dumps(run(place, **case)), "utf-8")
                os._exit(0)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        if status:
            sys.exit(f"{name} ended with {status}")


if __name__ == "__main__":
    main(*sys.argv[1:])
