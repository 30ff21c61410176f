"""ince's engine beside transformers' continuous batching on the base, in one process and in turns.

    python benchmarks/engine.py [--json FILE] [--requests N] [--tokens N] [--rounds N] [--quick]

SmolLM2-135M in float32, greedy, every request the same number of tokens: the one case that both can
do. Prompts of 20 to 200 tokens share nothing, so that no cache of prefixes helps anybody. What each
takes is measured in turns, the time of transformers' divided by that of ince's just before it, and
as processor seconds beside those of a clock: on one thread (OMP_NUM_THREADS=1) the former say on a
shared machine, too, what the work is.
"""

import argparse
import json
import platform
import random
import statistics
import threading
import time
from pathlib import Path

import torch
import transformers

from ince import load_model
from ince.serve.engine import Engine, Failed, Finished, GenerationRequest, Token
from ince.serve.sampling import SamplingOptions

MODEL = "smollm2-135m-instruct"


def now():
    return time.perf_counter(), time.process_time()


def since(start):
    """Seconds of the clock, and of processors."""
    return tuple(end - begun for begun, end in zip(start, now(), strict=True))


def ours(model, tokenizer, prompts, num_tokens):
    """Seconds, and the tokens of each prompt."""
    engine = Engine(model, tokenizer, kv_bytes=1 << 29, max_running=64, max_batch_tokens=512)
    answers = [[] for _ in prompts]
    left = threading.Semaphore(0)

    def listener(i):
        def hear(event):
            if isinstance(event, Token):
                answers[i].append(event.token)
            elif isinstance(event, Finished | Failed):
                left.release()

        return hear

    options = SamplingOptions(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    with engine:
        start = now()
        for i, prompt in enumerate(prompts):
            engine.submit(GenerationRequest(str(i), tuple(prompt), options), listener(i))
        for _ in prompts:
            left.acquire()
        seconds = since(start)
    return seconds, answers


def theirs(model, prompts, num_tokens):
    """The same of transformers' `generate_batch`."""
    settings = transformers.GenerationConfig(
        max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    start = now()
    found = model.generate_batch(inputs=prompts, generation_config=settings, progress_bar=False)
    seconds = since(start)
    in_order = [found[key] for key in sorted(found, key=lambda key: int(key.rsplit("_", 1)[1]))]
    return seconds, [list(each.generated_tokens) for each in in_order]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.requests, arguments.tokens, arguments.rounds = 3, 3, 1
    model, tokenizer = load_model(MODEL, dtype=torch.float32)
    model.eval()
    rng = random.Random(0)
    prompts = [
        [rng.randrange(1000, 40_000) for _ in range(rng.randint(20, 200))]
        for _ in range(arguments.requests)
    ]
    num_made = arguments.requests * arguments.tokens
    rounds = []
    for _ in range(arguments.rounds):
        own, answers = ours(model, tokenizer, prompts, arguments.tokens)
        other, expected = theirs(model, prompts, arguments.tokens)
        same = sum(a == b for a, b in zip(answers, expected, strict=True))
        rounds.append({"ince": own, "transformers": other, "equal_answers": same})
        print(
            f"ince {num_made / own[0]:.1f} tokens/s, transformers {num_made / other[0]:.1f}; "
            f"processor seconds {own[1]:.1f} and {other[1]:.1f}, {other[1] / own[1]:.2f} times; "
            f"{same} of {len(prompts)} answers equal",
            flush=True,
        )
    ratios = [each["transformers"][1] / each["ince"][1] for each in rounds]
    result = {
        "model": MODEL,
        "requests": arguments.requests,
        "tokens_each": arguments.tokens,
        "prompt_tokens": sum(map(len, prompts)),
        "rounds": rounds,
        "ratio": statistics.median(ratios),
        "ratios": [min(ratios), max(ratios)],
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    print(f"transformers takes {result['ratio']:.2f} times the processor's time")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
