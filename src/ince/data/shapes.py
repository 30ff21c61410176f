r"""The forms in which instruction data is written, told apart and turned into conversations.

| shape               | a row holds                                                           |
|---------------------|-----------------------------------------------------------------------|
| `messages`          | ``messages``: list of ``{"role", "content"}``                         |
| `sharegpt`          | ``conversations``: list of ``{"from", "value"}``                      |
| `alpaca`            | ``instruction``, perhaps ``input``, and ``output``                    |
| `prompt-completion` | a pair: ``prompt``/``completion``, ``question``/``answer``, …         |
| `plain-completion`  | the same pair as text without turns; read only where it is asked for  |
| `text`              | ``text``: a document                                                  |

Columns that no shape knows (an id, a category) are left alone. Columns that would change what
is learnt and that are not supported (tool calls, reasoning, weights) are refused.

Text is brought to Unicode NFC and to ``\n`` line ends; nothing else of it is changed.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from ince.data.conversation import (
    ROLES,
    Completion,
    Conversation,
    Document,
    Item,
    Message,
    check_turns,
)
from ince.data.rows import FileRow, JsonObject, printable
from ince.errors import DataError, did_you_mean

__all__ = ["SHAPES", "clean_text", "convert_row", "detect_shape", "shape_of"]

_LIST_COLUMNS = ("messages", "conversations", "conversation")
_INSTRUCTION = ("instruction", "talimat")
_ALPACA_INPUT = ("input", "context", "giriş")
_ALPACA_OUTPUT = ("output", "response", "çıktı")
_SYSTEM = ("system", "system_prompt")
_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("input", "output"),
    ("soru", "cevap"),
)
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "system": "system",
}
# Keys that change what is learnt, and the values that leave it as it is.
_REFUSED_IN_ROW: dict[str, tuple[object, ...]] = {
    "tools": (None, [], ""),
    "functions": (None, [], ""),
    "images": (None, [], ""),
    "history": (None, [], ""),
}
_REFUSED_IN_MESSAGE: dict[str, tuple[object, ...]] = {
    "tool_calls": (None, []),
    "tool_call_id": (None, ""),
    "function_call": (None, ""),
    "reasoning_content": (None, ""),
    "reasoning": (None, ""),
    "thinking": (None, ""),
    "weight": (None, 1),
    "train": (None, True),
    "loss": (None, True),
}


def clean_text(text: str) -> str:
    r"""`text` in Unicode NFC, with \n at the end of lines.

    Raises:
        DataError: it holds half a surrogate pair, which is no character.
    """
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise DataError("text with half a surrogate pair, which is no character", got=ascii(text))
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n"))


# ---------------------------------------------------------------------------- reading of columns


def _columns(value: Mapping[str, object]) -> JsonObject:
    """Columns that are filled, under their names in lower case."""
    return {name.strip().casefold(): item for name, item in value.items() if item is not None}


def _first(columns: JsonObject, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _text(columns: JsonObject, name: str) -> str:
    value = columns[name]
    if not isinstance(value, str):
        raise DataError(f"{name!r} is not text", got=f"{type(value).__name__}: {value!r}")
    return clean_text(value)


def _list(value: object) -> list[object] | None:
    """A list, or a list written as JSON in a table's cell."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return cast(list[object], value) if isinstance(value, list) else None


def _refuse(columns: JsonObject, refused: Mapping[str, tuple[object, ...]]) -> None:
    for name, harmless in refused.items():
        if name in columns and columns[name] not in harmless:
            raise DataError(f"{name!r} is not supported", got=columns[name])


def _pair(columns: JsonObject) -> tuple[str, str] | None:
    return next((pair for pair in _PAIRS if all(name in columns for name in pair)), None)


def _turn_list(columns: JsonObject) -> tuple[str, list[object]] | None:
    for name in _LIST_COLUMNS:
        turns = _list(columns.get(name))
        if turns is not None:
            return name, turns
    return None


# ----------------------------------------------------------------------------------- detection


def _looks_like_turns(columns: JsonObject, key: str, fallback: str) -> bool:
    found = _turn_list(columns)
    if found is None:
        return False
    name, turns = found
    if turns and isinstance(turns[0], dict):
        return key in turns[0]
    return name == fallback


_DETECTORS: dict[str, Callable[[JsonObject], bool]] = {
    "messages": lambda c: _looks_like_turns(c, "role", "messages"),
    "sharegpt": lambda c: _looks_like_turns(c, "from", "conversations"),
    "alpaca": lambda c: bool(_first(c, _INSTRUCTION) and _first(c, _ALPACA_OUTPUT)),
    "prompt-completion": lambda c: _pair(c) is not None,
    "text": lambda c: isinstance(c.get("text"), str),
}

SHAPES = (*_DETECTORS, "plain-completion")
"""Every shape that is read: the most particular first, and last the one that is never found."""


def shape_of(value: Mapping[str, object]) -> str | None:
    """The shape of one row's value, or None when it has none."""
    columns = _columns(value)
    return next((shape for shape, fits in _DETECTORS.items() if fits(columns)), None)


def detect_shape(rows: Sequence[FileRow]) -> str:
    """The shape that most rows have.

    Raises:
        DataError: no row has a shape that is known.
    """
    counts = Counter(shape for row in rows if (shape := shape_of(row.value)) is not None)
    if counts:
        # max takes the first of equals, which is the most particular.
        return max(SHAPES, key=lambda shape: counts[shape])
    names = list(dict.fromkeys(name for row in rows[:100] for name in row.value))
    known = [
        *_LIST_COLUMNS,
        *_INSTRUCTION,
        *_ALPACA_OUTPUT,
        *(n for p in _PAIRS for n in p),
        "text",
    ]
    hints = [f"{name!r}: {hint}" for name in names if (hint := did_you_mean(name, known))]
    if {"chosen", "rejected"} <= set(names):
        hints = ["pairs of chosen and rejected answers are not instruction data"]
    raise DataError(
        "the rows have no form that is known",
        got=f"columns {', '.join(names) or 'none'}",
        expected="messages; conversations; instruction and output; prompt and completion; "
        "question and answer; text",
        do="; ".join(hints[:3]) or "rename the columns",
    )


# ---------------------------------------------------------------------------------- conversion


def _content(value: object) -> str:
    """Text of a message: a string, or OpenAI's list of text parts."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        texts: list[str] = []
        for part in cast(list[object], value):
            text = part.get("text") if isinstance(part, dict) else None
            if not isinstance(text, str):
                raise DataError("a message has a part that is not text", got=part)
            texts.append(clean_text(text))
        return "".join(texts)
    raise DataError("the content of a message is not text", got=f"{value!r}")


def _messages(
    turns: Sequence[object], role_key: str, content_key: str, roles: Mapping[str, str]
) -> list[Message]:
    messages: list[Message] = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise DataError("a message is not an object", got=f"message {number}: {turn!r}")
        columns = _columns(cast(dict[str, object], turn))
        _refuse(columns, _REFUSED_IN_MESSAGE)
        if role_key not in columns or content_key not in columns:
            missing = role_key if role_key not in columns else content_key
            raise DataError(f"a message without {missing!r}", got=f"message {number}")
        role = columns[role_key]
        if not isinstance(role, str) or role not in roles:
            hint = did_you_mean(str(role), roles) or f"expected {', '.join(roles)}"
            raise DataError("unknown role", got=f"message {number}: {role!r}, {hint}")
        content = _content(columns[content_key])
        # Exports write an empty system message where there is none.
        if roles[role] != "system" or content.strip():
            messages.append(Message(roles[role], content))
    return messages


def _from_turn_list(
    columns: JsonObject, role_key: str, content_key: str, roles: Mapping[str, str]
) -> list[Message]:
    found = _turn_list(columns)
    if found is None:
        raise DataError("no list of messages", got=f"columns {', '.join(columns)}")
    return _messages(found[1], role_key, content_key, roles)


_PLAIN_ROLES = {role: role for role in ROLES}


def _from_messages(columns: JsonObject) -> list[Message]:
    return _from_turn_list(columns, "role", "content", _PLAIN_ROLES)


def _from_sharegpt(columns: JsonObject) -> list[Message]:
    return _from_turn_list(columns, "from", "value", _SHAREGPT_ROLES)


def _from_alpaca(columns: JsonObject) -> list[Message]:
    instruction = _first(columns, _INSTRUCTION)
    output = _first(columns, _ALPACA_OUTPUT)
    if instruction is None or output is None:
        raise DataError("no instruction and output", got=f"columns {', '.join(columns)}")
    asked = _text(columns, instruction)
    given = _first(columns, _ALPACA_INPUT)
    if given is not None and (more := _text(columns, given)).strip():
        asked = f"{asked}\n\n{more}"
    return [Message("user", asked), Message("assistant", _text(columns, output))]


def _from_pair(columns: JsonObject) -> list[Message]:
    pair = _pair(columns)
    if pair is None:
        raise DataError("no prompt and completion", got=f"columns {', '.join(columns)}")
    prompt, completion = (columns[name] for name in pair)
    if isinstance(prompt, list) and isinstance(completion, list):
        turns = [*cast(list[object], prompt), *cast(list[object], completion)]
        return _messages(turns, "role", "content", _PLAIN_ROLES)
    return [
        Message("user", _text(columns, pair[0])),
        Message("assistant", _text(columns, pair[1])),
    ]


def _num_completion_messages(columns: JsonObject) -> int:
    pair = _pair(columns)
    completion = columns[pair[1]] if pair else None
    if not isinstance(completion, list):
        return 1
    turns = cast(list[object], completion)
    return len(_messages(turns, "role", "content", _PLAIN_ROLES))


def _completion(columns: JsonObject, source: str) -> Completion:
    pair = _pair(columns)
    if pair is None:
        raise DataError("no prompt and completion", got=f"columns {', '.join(columns)}")
    prompt, text = (_text(columns, name) for name in pair)
    for name, content in zip(pair, (prompt, text), strict=True):
        if not content.strip():
            raise DataError(f"empty {name}")
    return Completion(prompt, text, source)


_CONVERTERS: dict[str, Callable[[JsonObject], list[Message]]] = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "alpaca": _from_alpaca,
    "prompt-completion": _from_pair,
}


def _with_own_system(columns: JsonObject, messages: list[Message]) -> list[Message]:
    name = _first(columns, _SYSTEM)
    if name is None or not (text := _text(columns, name)).strip():
        return messages
    if any(message.role == "system" for message in messages):
        raise DataError(f"a system message and a column {name!r}", got=printable(text))
    return [Message("system", text), *messages]


def convert_row(row: FileRow, shape: str, source: str) -> Item:
    """One row of a known shape as a conversation; as a document or a completion where it is text.

    Args:
        row: as it was read.
        shape: one of `SHAPES`.
        source: kept in the result, to say where it comes from.

    Raises:
        DataError: the row does not have that shape, or nothing can be learnt from it.
            Its `what` is the kind of mistake, its `got` what is particular to the row.
    """
    columns = _columns(row.value)
    _refuse(columns, _REFUSED_IN_ROW)
    if shape == "text":
        if "text" not in columns:
            raise DataError("no text", got=f"columns {', '.join(columns)}")
        text = _text(columns, "text")
        if not text.strip():
            raise DataError("empty text")
        return Document(text, source)
    if shape == "plain-completion":
        return _completion(columns, source)
    messages = _with_own_system(columns, _CONVERTERS[shape](columns))
    check_turns(messages)
    num_prompt = 0
    if shape == "prompt-completion":
        num_prompt = len(messages) - _num_completion_messages(columns)
    return Conversation(tuple(messages), source, num_prompt)
