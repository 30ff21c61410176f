"""What four bits cost: error of weights, and perplexity of a model, for each format and rule.

    python benchmarks/nf4_quality.py [--only error,perplexity] [--experiments] [--draws N]
                                     [--json FILE] [--quick]

*error*: mean absolute and squared error on normal weights and on Student's t with five degrees of
freedom, both of variance 1, a million each; and the squared error of the largest of a block, which
a searched scale no longer keeps exact.

*perplexity*: SmolLM2-135M-Instruct on English (docstrings of numpy and of Python's library) and on
Turkish (sentences of treebanks), the first 256 tokens of each text. Its linear layers are rounded
to each format and back to bfloat16; all else stays as it is. Products are taken in float32, so
that weights alone make the difference. Two things are measured at each token: its loss, whose
exponent is perplexity, and the Kullback-Leibler divergence of the predictions from those of the
model in bf16.

A rounding is one draw of many: where blocks begin decides which weights go up and which down.
To the loss that is a step in a random direction, which may help as well as harm, and is larger
than what tells two rules apart; the divergence has its least at the model itself and hardly
feels it. So formats are measured over several divisions into blocks: *as filed*, and with the
input columns of each layer in random orders, which leaves the model as it is. Differences are
taken text by text and order by order; intervals draw texts and orders again together.

The packaged model's file is itself rounded, to sixteen even steps over each 32 weights (GGUF's
Q4_1). "bf16" is that model, so what is measured is rounding on top of rounding. As filed,
blocks of 64 are two whole blocks of that grid; in other orders they know nothing of it.
"""

import argparse
import importlib
import importlib.metadata
import inspect
import json
import math
import os
import platform
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import ince
from ince.data.turkish import read_treebanks
from ince.demo.english import heldout_texts
from ince.models import load_tokenizer, resolve
from ince.ops import code_of, dequantize_4bit, dequantize_absmax, quantize_4bit, quantize_absmax

MODEL = "smollm2-135m-instruct"
BLOCKSIZE = 64
LIBRARY = (
    "argparse asyncio collections contextlib csv datetime decimal difflib enum fractions functools "
    "heapq inspect itertools json logging os pathlib pickle random re shutil socket sqlite3 ssl "
    "statistics string subprocess tarfile tempfile textwrap threading typing unittest uuid zipfile"
)
TEXT_CHARACTERS = 1200
TEXT_TOKENS = 256
RESAMPLES = 2000
ROWS = 256  # of logits at once
# Candidates of the experiments, as multiples of the largest magnitude.
WIDE = [64 / n for n in (64, 58, 61, 67, 70, 73, 76, 80)]
NARROW = [1.0, 0.95, 0.975, 1.025, 1.05]
# As the QLoRA paper's FP4: two bits of exponent, one of mantissa. bitsandbytes' FP4 has 1/192 in
# the place of 1/12.
E2M1 = torch.tensor([-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12]) / 12


def shipped(quant_type, *, double_quant=False, scale_search=False):
    """A rounding by ince's operators: a function from a weight to the weight rounded."""

    def rounded(weight):
        parts = quantize_4bit(weight, BLOCKSIZE, quant_type, scale_search=scale_search)
        packed, absmax = parts
        if double_quant:
            absmax = dequantize_absmax(*quantize_absmax(absmax))
        return dequantize_4bit(packed, absmax, BLOCKSIZE, weight.shape, weight.dtype, quant_type)

    return rounded


def nearest(normalized, values):
    midpoints = (values[:-1] + values[1:]) / 2
    return values[torch.bucketize(normalized, midpoints)]


def experiment(values, candidates=(1.0,), *, power=0, limits=(0.0, 2.0), refine=True):
    """A search of scales whose squared errors weigh by a power of each weight's magnitude."""

    def rounded(weight):
        blocks = weight.float().view(-1, BLOCKSIZE)
        largest = blocks.abs().amax(1).clamp(min=1e-30)
        u = blocks / largest[:, None]
        v = u.abs() ** power
        best = torch.full_like(largest, -torch.inf)
        scale = torch.ones_like(largest)
        for candidate in candidates if refine else ():
            c = nearest(u / candidate, values)
            product, square = (v * u * c).sum(1), (v * c * c).sum(1)
            fitted = (product / square).clamp(*limits)
            # How much of the weighted squares this scale explains.
            gain = fitted * (2 * product - fitted * square)
            scale = torch.where(gain > best, fitted, scale)
            best = torch.maximum(best, gain)
        c = nearest(u / scale[:, None], values)
        absmax = dequantize_absmax(*quantize_absmax(largest * scale))
        return (c * absmax[:, None]).view(weight.shape).to(weight.dtype)

    return rounded


NF4 = code_of("nf4")
PLAIN = "NF4 + DQ"
# name: (bits a weight, rounding)
FORMATS = {
    "NF4": (4.5, shipped("nf4")),
    PLAIN: (4.127, shipped("nf4", double_quant=True)),
    "NF4 + DQ, searched": (4.127, shipped("nf4", double_quant=True, scale_search=True)),
    "FP4": (4.5, shipped("fp4")),
    "INT4": (4.5, shipped("int4")),
    "E2M1 + DQ": (4.127, experiment(E2M1, refine=False)),
}
EXPERIMENTS = {
    "search, equal weights": (4.127, experiment(NF4, WIDE)),
    "search, by magnitude": (4.127, experiment(NF4, WIDE, power=1)),
    "search, by square": (4.127, experiment(NF4, WIDE, power=2)),
    "search within 5%": (4.127, experiment(NF4, NARROW, limits=(0.95, 1.05))),
    "FP4 + DQ, searched": (4.127, shipped("fp4", double_quant=True, scale_search=True)),
    "INT4 + DQ, searched": (4.127, shipped("int4", double_quant=True, scale_search=True)),
}


def error(settings):
    """Of each format on drawn weights."""
    num_weights = 1 << (14 if settings.quick else 20)
    generator = np.random.default_rng(0)
    weights = {
        "normal": torch.from_numpy(generator.standard_normal(num_weights)).float(),
        "t5": torch.from_numpy(
            generator.standard_t(5, size=num_weights) / math.sqrt(5 / 3)
        ).float(),
    }
    result = {}
    print("  format                   bits    normal MAE   MSE      t5 MAE   MSE      largest")
    for name, (bits, rounded) in settings.formats.items():
        entry = {"bits": bits}
        for kind, weight in weights.items():
            difference = (rounded(weight) - weight).view(-1, BLOCKSIZE)
            largest = weight.view(-1, BLOCKSIZE).abs().argmax(1, keepdim=True)
            entry[kind] = {
                "mae": float(difference.abs().mean()),
                "mse": float(difference.square().mean()),
                "mse_of_largest": float(difference.gather(1, largest).square().mean()),
            }
        result[name] = entry
        normal, t5 = entry["normal"], entry["t5"]
        print(
            f"  {name:24} {bits:.3f}   {normal['mae']:.4f}       {normal['mse']:.5f}  "
            f"{t5['mae']:.4f}   {t5['mse']:.5f}  {normal['mse_of_largest']:.5f}"
        )
    return result


def english(limit):
    """Docstrings: half of numpy's functions, half of Python's library."""
    library = []
    for name in LIBRARY.split():
        module = importlib.import_module(name)
        found = [inspect.getdoc(module) or ""]
        for key in sorted(vars(module)):
            value = vars(module)[key]
            if getattr(value, "__module__", None) == name and callable(value):
                found.append(inspect.getdoc(value) or "")
        text = "\n\n".join(part for part in found if len(part) > 80)
        if len(text) > 400:
            library.append(text)
    texts = [*heldout_texts(limit=limit // 2), *library[: limit - limit // 2]]
    return [text[:TEXT_CHARACTERS] for text in texts]


def turkish(limit):
    """Sentences from all parts of the treebanks, in passages of some hundred words."""
    passages = [""]
    for sentence in read_treebanks():
        if len(passages[-1]) > TEXT_CHARACTERS:
            passages.append("")
        passages[-1] = f"{passages[-1]} {sentence.text}".strip()
    step = max(1, len(passages) // limit)
    return [passage[:TEXT_CHARACTERS] for passage in passages[::step]][:limit]


def load(settings):
    """The model with its weights in bf16, and the tokenizer; or a tiny one, drawn at random."""
    if not settings.quick:
        return ince.load_model(MODEL, dtype=torch.bfloat16, device="cpu")
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer(resolve(MODEL).folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
    )
    return LlamaForCausalLM(config).bfloat16().eval(), tokenizer


class Measured:
    """A model whose linear layers are rounded in place, and texts to read.

    Shapes: L tokens of a text, D width, V vocabulary.
    """

    def __init__(self, settings):
        self.model, tokenizer = load(settings)
        texts = {"english": english(settings.num_texts), "turkish": turkish(settings.num_texts)}
        start, end = tokenizer.bos_token_id, settings.num_tokens
        tokens = {
            kind: [tokenizer(text, add_special_tokens=False)["input_ids"][:end] for text in each]
            for kind, each in texts.items()
        }
        self.num_bytes = {
            kind: sum(len(tokenizer.decode(ids).encode()) for ids in each)
            for kind, each in tokens.items()
        }
        self.ids = {
            kind: [torch.tensor([[start, *ids]]) for ids in each] for kind, each in tokens.items()
        }
        self.num_tokens = {
            kind: np.array([ids.shape[1] - 1 for ids in each]) for kind, each in self.ids.items()
        }
        self.layers = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and name != "lm_head"
        }
        self.weights = {name: layer.weight.clone() for name, layer in self.layers.items()}
        self.model.float()
        # Small beside the logits, which come from them again.
        self.base = {kind: [self.last(ids) for ids in each] for kind, each in self.ids.items()}

    def last(self, ids):
        """(1, L) -> (L - 1, D): what the output head reads, where a token follows."""
        return self.model.model(ids, use_cache=False).last_hidden_state[0, :-1]

    def round(self, rounded, order):
        """Round every layer with its columns in the order of this number; 0 is as filed."""
        for number, (name, layer) in enumerate(self.layers.items()):
            weight = self.weights[name]
            if not order:
                layer.weight.copy_(rounded(weight))
                continue
            generator = torch.Generator().manual_seed(1000 * order + number)
            columns = torch.randperm(weight.shape[1], generator=generator)
            layer.weight[:, columns] = rounded(weight[:, columns].contiguous()).float()

    def read(self):
        """By language, (texts, 2): the loss and the divergence of each text, summed, in nats."""
        return {
            kind: np.array([self.score(*each) for each in zip(ids, self.base[kind], strict=True)])
            for kind, ids in self.ids.items()
        }

    def score(self, ids, base_LD):
        loss = divergence = 0.0
        rows = zip(
            self.last(ids).split(ROWS), base_LD.split(ROWS), ids[0, 1:].split(ROWS), strict=True
        )
        for now, before, targets in rows:
            log_q, log_p = (self.model.lm_head(h).float().log_softmax(1) for h in (now, before))
            loss -= float(log_q.gather(1, targets[:, None]).double().sum())
            divergence += float((log_p.exp() * (log_p - log_q)).double().sum())
        return loss, divergence


def interval(differences, num_tokens):
    """Mean of sums over texts, for each token, and its 95% interval; (orders, texts), (texts,)."""
    generator = np.random.default_rng(0)
    num_orders, num_texts = differences.shape
    found = []
    for _ in range(RESAMPLES):
        orders = generator.integers(0, num_orders, num_orders)
        texts = generator.integers(0, num_texts, num_texts)
        drawn = differences[orders][:, texts].sum() / (num_orders * num_tokens[texts].sum())
        found.append(drawn)
    low, high = np.percentile(found, [2.5, 97.5])
    mean = differences.sum() / (num_orders * num_tokens.sum())
    return {"mean": float(mean), "low": float(low), "high": float(high)}


def perplexity(settings):
    """Of each format, as filed and over several orders of the columns."""
    measured = Measured(settings)
    base = measured.read()
    found = {name: [] for name in settings.formats}
    for order in range(settings.draws + 1):
        for name, (_, rounded) in settings.formats.items():
            measured.round(rounded, order)
            found[name].append(measured.read())
            for kind, num_tokens in measured.num_tokens.items():
                loss, divergence = found[name][-1][kind].sum(0) / num_tokens.sum()
                print(
                    f"  order {order}, {name}, {kind}: perplexity {math.exp(loss):.3f}, "
                    f"divergence {divergence:.5f}",
                    file=sys.stderr,
                    flush=True,
                )
    result = {}
    for kind, num_tokens in measured.num_tokens.items():
        total, num_bytes = int(num_tokens.sum()), measured.num_bytes[kind]
        loss = base[kind][:, 0]
        table = {"bf16": {"filed": scores(loss.sum(), total, num_bytes)}}
        plain = np.array([each[kind] for each in found[PLAIN]])
        for name in settings.formats:
            each = np.array([one[kind] for one in found[name]])  # (orders, texts, 2)
            more = each - plain
            table[name] = {
                "filed": scores(each[0, :, 0].sum(), total, num_bytes),
                "orders": scores(each[1:, :, 0].mean(0).sum(), total, num_bytes),
                "perplexity_by_order": [math.exp(one) for one in each[:, :, 0].sum(1) / total],
                "loss_above_bf16": interval(each[1:, :, 0] - loss, num_tokens),
                "loss_above_plain_filed": interval(more[:1, :, 0], num_tokens),
                "loss_above_plain": interval(more[1:, :, 0], num_tokens),
                "divergence_filed": interval(each[:1, :, 1], num_tokens),
                "divergence": interval(each[1:, :, 1], num_tokens),
                "divergence_above_plain": interval(more[1:, :, 1], num_tokens),
                "divergence_above_plain_filed": interval(more[:1, :, 1], num_tokens),
            }
        result[kind] = {
            "texts": len(num_tokens),
            "tokens": total,
            "bytes": num_bytes,
            "orders": settings.draws,
            "formats": table,
        }
        show(kind, result[kind])
    return result


def scores(nats, num_tokens, num_bytes):
    return {
        "perplexity": math.exp(nats / num_tokens),
        "bits_per_byte": nats / math.log(2) / num_bytes,
    }


def as_percent(entry):
    """A difference in nats for each token, as a change of perplexity."""
    mean, low, high = (100 * math.expm1(entry[key]) for key in ("mean", "low", "high"))
    return f"{mean:+.2f}% ({low:+.2f} … {high:+.2f})"


def against(entry, plain):
    """A difference of divergences, in parts of what it is compared with."""
    mean, low, high = (100 * entry[key] / plain["mean"] for key in ("mean", "low", "high"))
    return f"{mean:+.1f}% ({low:+.1f} … {high:+.1f})"


def show(kind, found):
    print(f"  {kind}: {found['texts']} texts, {found['tokens']} tokens")
    print(
        "  | format | perplexity | bits/byte | against NF4 + DQ | divergence | against NF4 + DQ |"
    )
    plain = found["formats"][PLAIN]
    for which, suffix in (("filed", "_filed"), ("orders", "")):
        print(f"  as {which}" if suffix else f"  in {found['orders']} other orders")
        for name, entry in found["formats"].items():
            if which not in entry:
                continue
            cells = [
                name,
                f"{entry[which]['perplexity']:.3f}",
                f"{entry[which]['bits_per_byte']:.4f}",
            ]
            if name != "bf16":
                divergence = entry[f"divergence{suffix}"]
                cells += [
                    as_percent(entry[f"loss_above_plain{suffix}"]),
                    f"{divergence['mean']:.5f}",
                    against(entry[f"divergence_above_plain{suffix}"], plain[f"divergence{suffix}"]),
                ]
            print(f"  | {' | '.join(cells)} |")


class Settings:
    """What the command line chose."""

    def __init__(self, arguments):
        self.quick = arguments.quick
        self.draws = 1 if arguments.quick else arguments.draws
        self.num_texts = 2 if arguments.quick else arguments.texts
        self.num_tokens = 16 if arguments.quick else TEXT_TOKENS
        self.formats = FORMATS | (EXPERIMENTS if arguments.experiments or arguments.quick else {})
        if arguments.formats:
            wanted = arguments.formats.split("/")
            known = FORMATS | EXPERIMENTS
            self.formats = {name: known[name] for name in wanted}


SECTIONS = {"error": error, "perplexity": perplexity}


def machine():
    """What the figures were taken on, without the machine's name."""
    return {
        "isa": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def versions():
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in ("torch", "transformers", "ince")
    }


def main():
    parser = argparse.ArgumentParser(description="what four bits cost")
    parser.add_argument("--only", default="", help="sections, with commas between")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it work?")
    parser.add_argument("--experiments", action="store_true", help="rules that were tried as well")
    parser.add_argument("--formats", default="", help="these alone, with slashes between")
    parser.add_argument("--draws", type=int, default=4, help="orders of the columns")
    parser.add_argument("--texts", type=int, default=10, help="of each language")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",") if arguments.only else list(SECTIONS)
    if not set(wanted) <= set(SECTIONS):
        parser.error(f"--only takes {', '.join(SECTIONS)}")
    torch.set_grad_enabled(False)
    figures = {
        "machine": machine(),
        "versions": versions(),
        "command": shlex.join(["python", *sys.argv]),
    }
    for what, value in figures.items():
        print(f"{what}: {value}")
    settings = Settings(arguments)
    for name in wanted:
        print(f"{name}:")
        start = time.perf_counter()
        figures[name] = SECTIONS[name](settings) | {"seconds": time.perf_counter() - start}
        if arguments.json:
            text = json.dumps(figures, indent=1, ensure_ascii=False)
            arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
