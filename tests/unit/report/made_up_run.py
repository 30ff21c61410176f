"""A run folder as a run leaves it, made up: the numbers are plausible and mean nothing."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

_INFLECTION = [
    ("kitap", "çoğul bulunma (-de)", "kitaplarda", "The plural of kitap is kitaps.", "kitaplarda"),
    ("göl", "tekil yönelme (-e)", "göle", "göl-e", "göle"),
    ("ağaç", "tekil belirtme (-i)", "ağacı", "ağaçı", "ağacı"),
    ("deniz", "çoğul ayrılma (-den)", "denizlerden", "denizden", "denizlerden"),
    ("şehir", "tekil bulunma (-de)", "şehirde", "In the city", "şehirde"),
    ("burun", "tekil belirtme (-i)", "burnu", "burun", "burunu"),
    ("öğretmen", "çoğul ilgi (-in)", "öğretmenlerin", "öğretmen", "öğretmenlerin"),
    ("yol", "çoğul vasıta (-le)", "yollarla", "yol ile", "yollarla"),
    ("renk", "tekil belirtme (-i)", "rengi", "renk", "renki"),
    ("su", "tekil ilgi (-in)", "suyun", "The water", "suyun"),
]
_DIACRITICS = [
    ("Turkce harfleri duzelt", "Türkçe harfleri düzelt", "Turkish letters correct"),
    ("agac gibi gur", "ağaç gibi gür", "agac gibi gur"),
    ("cok guzel bir gun", "çok güzel bir gün", "cok guzel bir gun"),
    ("Istanbul'un eski sokaklari", "İstanbul'un eski sokakları", "Istanbul's old streets"),
    ("ogrenciler sinifa girdi", "öğrenciler sınıfa girdi", "ogrenciler sinifa girdi"),
    ("daglarin ardinda kalan", "dağların ardında kalan", "daglarin ardinda kalan"),
    ("kus ucusu uc saat", "kuş uçuşu üç saat", "The bird flew for three hours"),
    ("yagmurlu bir kis gunu", "yağmurlu bir kış günü", "yagmurlu bir kis gunu"),
    ("buyuk sehirlerin gurultusu", "büyük şehirlerin gürültüsü", "buyuk sehirlerin"),
    ("isik hizina ulasmak", "ışık hızına ulaşmak", "isik hizina ulasmak"),
]


def metric(
    name: str, label: str, group: str, unit: str, higher: bool, **values: float | None
) -> dict[str, Any]:
    base, tuned, half = values["base"], values["tuned"], values["half"]
    assert base is not None
    assert tuned is not None
    assert half is not None
    return {
        "name": name,
        "label": label,
        "group": group,
        "unit": unit,
        "higher_is_better": higher,
        "base": base,
        "tuned": tuned,
        "echo": values.get("echo"),
        "difference": tuned - base,
        "low": tuned - base - half,
        "high": tuned - base + half,
        "num_rows": 220,
    }


def evaluation() -> dict[str, Any]:
    return {
        "confidence": 0.95,
        "metrics": [
            metric(
                "inflection_exact_match",
                "inflection: exact match",
                "inflection",
                "share",
                True,
                base=0.0,
                tuned=0.664,
                half=0.062,
                echo=0.0,
            ),
            metric(
                "diacritics_word_accuracy",
                "diacritics: words restored",
                "diacritics",
                "share",
                True,
                base=0.004,
                tuned=0.612,
                half=0.041,
                echo=0.0,
            ),
            metric(
                "diacritics_chrf",
                "diacritics: chrF",
                "diacritics",
                "chrF",
                True,
                base=34.2,
                tuned=84.1,
                half=3.2,
                echo=65.3,
            ),
            metric(
                "heldout_loss",
                "held-out loss",
                "held-out rows",
                "nats a token",
                False,
                base=3.914,
                tuned=0.952,
                half=0.11,
            ),
            metric(
                "english_bits_per_byte",
                "English, bits per byte",
                "english",
                "bits",
                False,
                base=1.281,
                tuned=1.296,
                half=0.006,
            ),
        ],
    }


def record() -> dict[str, Any]:
    split = {
        "path": "turkish-treebanks 1.0.0/train.jsonl",
        "digest": "5f1c" * 16,
        "shape": "messages",
        "num_rows": 2412,
        "num_examples": 2390,
        "num_dropped": 22,
        "dropped": {"longer than 1024 tokens": 17, "no assistant turn": 5},
        "num_tokens": 161_204,
        "num_targets": 21_870,
        "num_truncated": 0,
    }
    held_out = {**split, "num_rows": 440, "num_examples": 440, "num_dropped": 0, "dropped": {}}
    return {
        "format": "ince-run/1",
        "status": "done",
        "created": "2026-03-01T14:05:11+00:00",
        "finished": "2026-03-01T14:15:03+00:00",
        "recipe": {
            "model": {
                "base": "smollm2-135m-instruct",
                "quantize": "nf4",
                "double_quant": True,
                "compute_dtype": "bfloat16",
            },
            "lora": {"r": 16, "alpha": 32, "dropout": 0.05, "target_modules": "all-linear"},
            "data": {
                "train": "train.jsonl",
                "eval": "eval.jsonl",
                "format": "auto",
                "max_length": 1024,
                "packing": True,
                "loss_on": "assistant",
                "system": None,
            },
            "train": {
                "epochs": 2,
                "batch_tokens": 4096,
                "lr": 2e-3,
                "schedule": "cosine",
                "warmup": 0.05,
                "optimizer": "adamw",
                "betas": [0.9, 0.999],
                "seed": 7,
            },
            "evaluate": {"max_new_tokens": 48, "num_resamples": 2000},
            "output": "runs/turkish",
        },
        "recipe_digest": "ab12" * 16,
        "versions": {
            "python": "3.11.2",
            "ince": "0.1.0",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "tokenizers": "0.23.1",
            "safetensors": "0.8.0",
        },
        "hardware": {
            "platform": "Linux x86_64",
            "processor": "AMD EPYC 9R14",
            "num_cores": 2,
            "memory_bytes": 8 * 2**30,
            "accelerator": None,
        },
        "base": {
            "reference": "smollm2-135m-instruct",
            "name": "SmolLM2-135M-Instruct",
            "kind": "packaged",
            "digest": "c0de" * 16,
            "license": "Apache-2.0",
            "num_parameters": 134_515_008,
            "weight_bytes": 118_000_000,
            "quantization": {"type": "nf4", "blocksize": 64, "double_quant": True},
        },
        "adapter": {
            "r": 16,
            "alpha": 32,
            "target_modules": [
                "q_proj",
                "k_proj",
                "v_proj",
                "o_proj",
                "gate_proj",
                "up_proj",
                "down_proj",
            ],
            "num_trainable": 4_884_480,
            "num_total": 139_399_488,
            "digest": "feed" * 16,
        },
        "data": {"train": split, "eval": held_out},
        "training": {
            "steps": 320,
            "epochs": 2,
            "num_tokens": 322_408,
            "num_targets": 43_740,
            "seconds": 301.2,
            "tokens_per_second": 1070.4,
            "first_loss": 3.91,
            "final_loss": 0.41,
        },
        "evaluation": evaluation(),
        "proofs": [
            {
                "name": "merged model equals adapter",
                "value": 0.0156,
                "limit": 0.05,
                "unit": "logit",
                "holds": True,
                "detail": "over 16 prompts, 1,204 positions; the same token everywhere",
            },
            {
                "name": "adapter reads back to the byte",
                "value": 0,
                "limit": 0,
                "unit": "bytes",
                "holds": True,
                "detail": "",
            },
            {
                "name": "English kept",
                "value": 1.17,
                "limit": 3,
                "unit": "%",
                "holds": True,
                "detail": "rise of bits per byte",
            },
        ],
        "phases": [
            {"name": "load the model", "seconds": 14.2, "peak_bytes": 890 * 2**20},
            {"name": "build the data", "seconds": 6.1, "peak_bytes": 940 * 2**20},
            {"name": "evaluate the base", "seconds": 96.4, "peak_bytes": 1_650 * 2**20},
            {"name": "train", "seconds": 301.2, "peak_bytes": 2_210 * 2**20},
            {"name": "evaluate the result", "seconds": 121.7, "peak_bytes": 2_210 * 2**20},
            {"name": "merge and check", "seconds": 31.5, "peak_bytes": 2_240 * 2**20},
            {"name": "report", "seconds": 0.8, "peak_bytes": 2_240 * 2**20},
        ],
        "seconds": 577.4,
        "peak_bytes": 2_240 * 2**20,
    }


def log_lines(num_steps: int) -> list[dict[str, Any]]:
    chance = random.Random(7)
    lines: list[dict[str, Any]] = []
    for step in range(1, num_steps + 1):
        done = step / num_steps
        loss = 0.4 + 3.5 * math.exp(-6 * done) + chance.gauss(0, 0.16) * (1.2 - done)
        warm = min(1.0, step / (0.05 * num_steps + 1))
        lines.append(
            {
                "step": step,
                "loss": round(max(0.05, loss), 4),
                "lr": 2e-3 * warm * 0.5 * (1 + math.cos(math.pi * done)),
                "grad_norm": round(abs(0.6 + 1.8 * math.exp(-5 * done) + chance.gauss(0, 0.2)), 4),
                "tokens": 1008,
                "target_tokens": 137,
                "tokens_per_second": round(1070 + chance.gauss(0, 45), 1),
                "peak_bytes": int((1.7 + 0.5 * (1 - math.exp(-12 * done))) * 2**30),
            }
        )
        if step % max(1, num_steps // 8) == 0:
            lines.append({"step": step, "eval_loss": round(0.9 + 3.0 * math.exp(-5.5 * done), 4)})
            lines.append(
                {
                    "step": step,
                    "samples": [
                        {
                            "prompt": '"kedi" sözcüğünün çoğul yönelme (-e) hâli nedir?',
                            "expected": "kedilere",
                            "output": "kedilere"
                            if done > 0.5
                            else "kedi" + "le" * (1 + int(4 * done)),
                        },
                        {
                            "prompt": "Türkçe harfleri düzelt: gun isigi",
                            "expected": "gün ışığı",
                            "output": "gün ışığı" if done > 0.7 else "gün isigi",
                        },
                    ],
                }
            )
    return lines


def samples() -> list[dict[str, Any]]:
    rows = [
        {
            "task": "inflection",
            "prompt": f'"{word}" sözcüğünün {form} hâli nedir?',
            "expected": expected,
            "base": base,
            "tuned": tuned,
        }
        for word, form, expected, base, tuned in _INFLECTION
    ]
    rows += [
        {
            "task": "diacritics",
            "prompt": f"Türkçe harfleri düzelt: {folded}",
            "expected": whole,
            "base": base,
            "tuned": whole if place % 4 else whole.replace("ü", "u", 1),
        }
        for place, (folded, whole, base) in enumerate(_DIACRITICS)
    ]
    for row in rows:
        row["base_right"] = row["base"] == row["expected"]
        row["tuned_right"] = row["tuned"] == row["expected"]
    return rows


def json_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_run(
    folder: Path,
    *,
    num_steps: int = 320,
    change: Callable[[dict[str, Any]], object] | None = None,
    without: tuple[str, ...] = (),
) -> Path:
    """Write the four files of a run; `change` gets the record before it is written."""
    folder.mkdir()
    content = record()
    if change is not None:
        change(content)
    files = {
        "run.json": json.dumps(content, ensure_ascii=False),
        "eval.json": json.dumps(content["evaluation"], ensure_ascii=False),
        "log.jsonl": json_lines(log_lines(num_steps)),
        "samples.jsonl": json_lines(samples()),
    }
    for file, text in files.items():
        if file not in without:
            (folder / file).write_text(text, encoding="utf-8")
    return folder
