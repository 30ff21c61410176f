"""What a run was made of: its state, data, recipe, base, adapter and machine, as facts."""

from collections.abc import Mapping

from ince.report.facts import Fact, facts, in_bytes, in_count, in_full, in_seconds
from ince.report.loose import mapping, number, shown, shown_value, text, whole

__all__ = [
    "adapter_facts",
    "base_facts",
    "key_facts",
    "machine_facts",
    "recipe_sections",
    "splits",
    "status",
    "version_facts",
]

_STATUS_WORDS = {
    "done": "Done",
    "running": "Not finished",
    "interrupted": "Interrupted",
    "failed": "Failed",
}
_STATUS_MEANING = {
    "running": "The run is still going, or was cut off without a word. "
    "This page shows what it had written.",
    "interrupted": "The run was stopped before its end. This page shows what it had written.",
    "failed": "The run ended with an error. This page shows what it had written before.",
}

_SPLIT_ROWS = (
    ("num_rows", "rows read"),
    ("num_examples", "examples kept"),
    ("num_tokens", "tokens"),
    ("num_targets", "tokens trained on"),
    ("num_truncated", "examples cut to length"),
    ("num_split", "rows split"),
    ("num_lost_tokens", "tokens lost to length"),
    ("num_lost_targets", "of those, to train on"),
    ("num_lost_stops", "stop tokens lost to length"),
)


def _by_count(reason: tuple[str, int]) -> int:
    return -reason[1]


def splits(record: Mapping[str, object]) -> list[dict[str, object]]:
    """The data, split by split: what was read, what was dropped and why."""
    found: list[dict[str, object]] = []
    for name, value in mapping(record.get("data")).items():
        split = mapping(value)
        if not split:
            continue
        counts = [Fact(label, in_full(split.get(key)) or "–") for key, label in _SPLIT_ROWS]
        dropped = mapping(split.get("dropped")).items()
        reasons = sorted(((shown(r, limit=200), whole(n) or 0) for r, n in dropped), key=_by_count)
        found.append(
            {
                "name": {"train": "Training", "eval": "Held out"}.get(name, shown(name, limit=40)),
                "path": text(split.get("path"), limit=300) or "",
                "shape": text(split.get("shape"), limit=40) or "",
                "digest": text(split.get("digest"), limit=100) or "",
                "counts": counts,
                "num_dropped": in_full(split.get("num_dropped")) or "–",
                "reasons": [(reason, f"{num:,}") for reason, num in reasons[:20]],
            }
        )
    return found


def recipe_sections(record: Mapping[str, object]) -> list[tuple[str, list[Fact]]]:
    """The recipe by section; what stands outside a section comes last."""
    sections: list[tuple[str, list[Fact]]] = []
    loose: list[Fact] = []
    for key, value in mapping(record.get("recipe")).items():
        name = shown(key, limit=80)
        inner = mapping(value)
        if inner:
            facts = [Fact(shown(k, limit=80), shown_value(v), True) for k, v in inner.items()]
            sections.append((name, facts))
        else:
            loose.append(Fact(name, shown_value(value), True))
    return [*sections, *([("run", loose)] if loose else [])]


def base_facts(record: Mapping[str, object]) -> list[Fact]:
    """What was tuned: the base model, and how it was held in memory."""
    base = mapping(record.get("base"))
    quantization = base.get("quantization", "")
    return facts(
        [
            ("name", base.get("name")),
            ("reference", base.get("reference")),
            ("comes as", base.get("kind")),
            ("license", base.get("license")),
            ("parameters", in_count(base.get("num_parameters"))),
            ("weights in memory", in_bytes(base.get("weight_bytes"))),
            ("quantization", "none, 16 bit" if quantization is None else quantization),
            ("digest", base.get("digest")),
        ],
        mono=("reference", "digest"),
    )


def adapter_facts(record: Mapping[str, object]) -> list[Fact]:
    """What was trained, with whatever else the record says of it."""
    adapter = mapping(record.get("adapter")) or mapping(record.get("model"))
    trainable, total = number(adapter.get("num_trainable")), number(adapter.get("num_total"))
    share = f", {100 * trainable / total:.2f}% of all" if trainable and total else ""
    known = {"r", "alpha", "target_modules", "num_trainable", "num_total", "digest"}
    return facts(
        [
            ("rank r", adapter.get("r")),
            ("alpha", adapter.get("alpha")),
            ("on", adapter.get("target_modules")),
            ("trainable", None if trainable is None else f"{trainable:,.0f}{share}"),
            *((key.replace("_", " "), value) for key, value in adapter.items() if key not in known),
            ("digest", adapter.get("digest")),
        ],
        mono=("on", "digest"),
    )


def machine_facts(record: Mapping[str, object]) -> list[Fact]:
    """Where it ran."""
    machine = mapping(record.get("hardware"))
    return facts(
        [
            ("platform", machine.get("platform")),
            ("processor", machine.get("processor")),
            ("cores", machine.get("num_cores")),
            ("memory", in_bytes(machine.get("memory_bytes"))),
            ("accelerator", machine.get("accelerator") or ("none" if machine else None)),
        ]
    )


def key_facts(record: Mapping[str, object]) -> list[Fact]:
    """The few numbers that everyone asks for first."""
    training = mapping(record.get("training"))
    tuned = mapping(record.get("adapter")) or mapping(record.get("model"))
    return facts(
        [
            # Zero until the run has ended.
            ("whole run", in_seconds(record.get("seconds") or None)),
            ("peak memory", in_bytes(record.get("peak_bytes"))),
            ("training steps", in_full(training.get("steps"))),
            ("tokens seen", in_count(training.get("num_tokens"))),
            ("tokens a second", in_count(training.get("tokens_per_second"))),
            ("trainable", in_count(tuned.get("num_trainable"))),
        ]
    )


def status(record: Mapping[str, object]) -> dict[str, object]:
    """How the run ended, in words, with its error when it failed."""
    code = text(record.get("status"), limit=40) or "unknown"
    error = mapping(record.get("error"))
    details = [
        (shown(key, limit=60), shown_value(value))
        for key, value in error.items()
        if key not in ("type", "what", "exit_code")
    ]
    return {
        "code": code if code in _STATUS_WORDS else "unknown",
        "words": _STATUS_WORDS.get(code, "Status unknown"),
        "meaning": _STATUS_MEANING.get(code, ""),
        "error": text(error.get("what")) or "",
        "error_type": text(error.get("type"), limit=80) or "",
        "details": details,
    }


def version_facts(record: Mapping[str, object]) -> list[Fact]:
    """The versions of everything that shaped the result."""
    return facts(list(mapping(record.get("versions")).items())[:40])
