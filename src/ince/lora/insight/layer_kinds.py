"""Short names for layers of a kind: ``q_proj`` for all of ``model.layers.*.self_attn.q_proj``.

The last part of the name where that is enough; more of it where two kinds end alike
(``SelfAttention.q`` and ``EncDecAttention.q`` of a T5).
"""

import re
from collections import defaultdict
from collections.abc import Iterable

__all__ = ["customary", "kinds_of", "layer_number"]

_NUMBER = re.compile(r"\.(\d+)(?:\.|$)")
# Of an expert, which is written behind its parameter's name.
_EXPERT = re.compile(r"\[\d+\]$")

_SAY_NOTHING = ("*", "base_layer")
# As they come in a layer; what has another name stands behind, by name.
_ORDER = (
    "embed_tokens",
    "q_proj",
    "k_proj",
    "v_proj",
    "qkv_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "gate_up_proj",
    "down_proj",
)


def customary(kind: str) -> tuple[int, str]:
    """A key that sorts kinds as people list them: q, k, v, o, gate, up, down, then the rest."""
    leaf = kind.rpartition(".")[2]
    return (_ORDER.index(leaf) if leaf in _ORDER else len(_ORDER)), kind


def layer_number(name: str) -> int | None:
    """The first number among the parts of a name: where in the model's depth a layer lies."""
    found = _NUMBER.search("." + name)
    return int(found[1]) if found else None


def kinds_of(names: Iterable[str]) -> dict[str, str]:
    """The kind of each name, the shortest ends of it that tell kinds apart."""
    patterns = {name: _pattern(name) for name in names}
    lengths = {pattern: _least(pattern) for pattern in patterns.values()}
    while True:
        by_end: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        for pattern, length in lengths.items():
            by_end[".".join(pattern[-length:])].append(pattern)
        alike = [pattern for same in by_end.values() if len(same) > 1 for pattern in same]
        longer = [pattern for pattern in alike if lengths[pattern] < len(pattern)]
        if not longer:
            break
        for pattern in longer:
            lengths[pattern] += 1
    return {name: ".".join(pattern[-lengths[pattern] :]) for name, pattern in patterns.items()}


def _pattern(name: str) -> tuple[str, ...]:
    parts = _EXPERT.sub("", name).split(".")
    return tuple("*" if part.isdigit() else part for part in parts)


def _least(pattern: tuple[str, ...]) -> int:
    """Parts from the end to the first that says something: a number alone does not."""
    named = next((n for n, part in enumerate(reversed(pattern)) if part not in _SAY_NOTHING), 0)
    return named + 1
