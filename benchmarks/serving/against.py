"""What is measured beside others: PEFT, transformers, llama.cpp, and ince's own HTTP server."""

import os
import statistics
from importlib.util import find_spec

from serving.bench import spread
from serving.clients import run_clients
from serving.llama_cpp import LlamaServer, converted
from serving.peers import ORDERS, peft_model, run_continuous, run_peft, without_end
from serving.timeline import say, summary


def ratio(ours, theirs):
    """Of tokens in a second: the median over rounds, the least and the most."""
    found = sorted(
        mine["tokens_per_second"] / other["tokens_per_second"]
        for mine, other in zip(ours, theirs, strict=True)
    )
    return {"median": statistics.median(found), "least": found[0], "most": found[-1]}


def equal(ours, theirs):
    """How many answers are the same."""
    return sum(a.tokens == b.tokens for a, b in zip(ours, theirs, strict=True))


def against_peft(bench):
    """16 adapters: the same requests by ince and by PEFT's `generate(adapter_names=...)`."""
    numbers = bench.numbers(4 if bench.quick else 16, dora=False)
    folders, digests = bench.adapters(numbers)
    requests = spread(bench.requests(), numbers)
    model, tokenizer = bench.load()
    asked = sorted({each.adapter for each in requests})
    adapted = peft_model(model, {number: folders[number] for number in asked})
    found = {"ince": []} | {order: [] for order in ORDERS}
    with bench.ours(folders, digests) as ours:
        ours.warm(digests.values())
        ours.run(requests[:4], digests, salt="warm")
        run_peft(adapted, requests[:2], size=2, order="by length", pad=tokenizer.pad_token_id)
        for number in range(bench.arguments.rounds):
            lines = ours.run(requests, digests, salt=f"peft {number}")
            found["ince"].append(summary(lines))
            say("ince", found["ince"][-1])
            for order in ORDERS:
                theirs = run_peft(
                    adapted,
                    requests,
                    size=bench.arguments.peft_batch,
                    order=order,
                    pad=tokenizer.pad_token_id,
                )
                told = summary(theirs) | {"equal_answers": equal(lines, theirs)}
                found[order].append(told)
                print(
                    f"  PEFT, {order}: {told['tokens_per_second']:.1f} tokens/s, "
                    f"{told['equal_answers']} of {len(lines)} answers as ince's",
                    flush=True,
                )
    best = max(
        ORDERS,
        key=lambda order: statistics.median(each["tokens_per_second"] for each in found[order]),
    )
    mixed = max(
        ORDERS[:2],
        key=lambda order: statistics.median(each["tokens_per_second"] for each in found[order]),
    )
    over = {"mixed": ratio(found["ince"], found[mixed]), "best": ratio(found["ince"], found[best])}
    print(f"  times PEFT's tokens/s: mixed ({mixed}) {over['mixed']}, best ({best}) {over['best']}")
    return {"rounds": found, "mixed": mixed, "best": best, "over": over}


def against_transformers(bench):
    """The base: ince, and transformers' continuous batching."""
    requests = bench.requests()
    model, _ = bench.load()
    without_end(model)
    found = {"ince": [], "transformers": []}
    sizes = {"max_batch_tokens": bench.max_batch_tokens, "max_running": bench.max_running}
    with bench.ours() as ours:
        ours.run(requests[:4], {}, salt="warm")
        run_continuous(model, requests[:2], **sizes)
        for number in range(bench.arguments.rounds):
            lines = ours.run(requests, {}, salt=f"transformers {number}")
            found["ince"].append(summary(lines))
            say("ince", found["ince"][-1])
            theirs = run_continuous(model, requests, **sizes)
            told = summary(theirs) | {"equal_answers": equal(lines, theirs)}
            found["transformers"].append(told)
            say(f"transformers ({told['equal_answers']} answers as ince's)", told)
    over = ratio(found["ince"], found["transformers"])
    print(f"  times transformers' tokens/s: {over}")
    return {"rounds": found, "over": over}


def against_llama_cpp(bench):
    """One adapter: ince, and llama.cpp's server."""
    program, sources = bench.arguments.llama_server, bench.arguments.llama_sources
    if program is None and (sources is None or find_spec("xllamacpp") is None):
        print("  left out: neither --llama-server PATH, nor xllamacpp and --llama-sources FOLDER")
        return {"left_out": True}
    folders, digests = bench.adapters([0])
    # New prompts in every round: its server remembers those of the one before.
    rounds = [spread(bench.requests(seed), [0]) for seed in range(bench.arguments.rounds + 1)]
    model, lora = converted(sources or program.parents[2], bench.base, folders[0], bench.place)
    found = {"ince": [], "llama.cpp": []}
    longest = max(len(each.prompt) + each.num_new for asked in rounds for each in asked) + 8
    server = LlamaServer(
        program,
        model,
        lora,
        num_slots=bench.max_running,
        context=longest,
        threads=os.cpu_count(),
        log=bench.place / "llama-server.log",
    )
    with server, bench.ours(folders, digests) as ours:
        ours.warm(digests.values())
        warming, *rounds = rounds
        ours.run(warming[:4], digests, salt="warm")
        run_clients("llama.cpp", server.port, warming[:2], lambda _: None)
        for number, requests in enumerate(rounds):
            found["ince"].append(summary(ours.run(requests, digests, salt=f"llama {number}")))
            say("ince", found["ince"][-1])
            theirs = summary(run_clients("llama.cpp", server.port, requests, lambda _: None))
            found["llama.cpp"].append(theirs)
            say("llama.cpp", theirs)
    over = ratio(found["ince"], found["llama.cpp"])
    print(f"  times llama.cpp's tokens/s: {over}")
    return {"rounds": found, "over": over}
