"""Chats of real lengths where there is no network: questions about Python's standard library.

The texts are docstrings and help topics of the interpreter that runs this, read from source
without importing it; nothing of them is kept here. A chat asks what something does, asks for
the docstring of a shown function, asks twice, or asks for a language topic. As in data that
people train on most chats are short, some are long, and answers are most of the tokens. Equal
interpreters and seeds give equal chats; `digest` tells whether two runs had the same.
"""

import ast
import hashlib
import json
import random
import sysconfig
from pathlib import Path

# Chosen by hand: what people ask about, with docstrings that say more than a name does.
_FOLDERS = (
    "",
    "asyncio",
    "collections",
    "concurrent/futures",
    "email",
    "html",
    "http",
    "importlib",
)
_FOLDERS += ("json", "logging", "multiprocessing", "unittest", "urllib", "xml/etree")
_SHORTEST = 120  # characters of an answer: shorter ones repeat the name
_MOST_SOURCE = 1200  # characters of a function that is shown
_KINDS = {"explain": 50, "docstring": 20, "twice": 20, "topic": 10}


class _Texts:
    """What there is to ask about, each used once."""

    def __init__(self, draw, count):
        self.functions, self.topics = _functions(draw, count), _topics()
        draw.shuffle(self.functions)
        draw.shuffle(self.topics)


def _functions(draw, count):
    """(module, syntax tree, docstring) of documented functions and classes: `count`, and more
    where there are, so that they are of many modules."""
    root, found = Path(sysconfig.get_path("stdlib")), []
    paths = [path for folder in _FOLDERS for path in sorted((root / folder).glob("*.py"))]
    draw.shuffle(paths)
    for path in paths:
        if path.name.startswith("_") and path.name != "__init__.py":
            continue
        if len(found) >= 2 * count:
            break
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                docstring = (ast.get_docstring(node) or "").strip()
                if len(docstring) >= _SHORTEST:
                    found.append((module, node, docstring))
    return found


def _bare(node):
    """Source of a function without its docstring; nothing for a class."""
    if isinstance(node, ast.ClassDef) or len(node.body) < 2:
        return ""
    shown = ast.FunctionDef(
        **{field: getattr(node, field) for field in node._fields if field != "body"},
        body=node.body[1:],
        lineno=1,
        col_offset=0,
    )
    return ast.unparse(shown)


def _topics():
    from pydoc_data.topics import topics

    found = []
    for name, text in sorted(topics.items()):
        paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
        prose = [part for part in paragraphs if len(part) > 80 and "::=" not in part]
        # Several chats of a topic, each about a part of it.
        found += [
            (name, start // 4 + 1, "\n\n".join(prose[start : start + 4]))
            for start in range(0, len(prose), 4)
        ]
    return found


def _turns(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def _chat(kind, texts):
    if kind == "topic" and texts.topics:
        name, part, text = texts.topics.pop()
        return _turns(f"Explain the topic '{name}' of the Python language, part {part}.", text)
    module, node, docstring = texts.functions.pop()
    name, (first, _, rest) = node.name, docstring.partition("\n\n")
    source = _bare(node) if kind == "docstring" else ""
    if 0 < len(source) <= _MOST_SOURCE:
        return _turns(f"Write a docstring for this function:\n\n{source}", docstring)
    if kind == "twice" and len(rest) > 60:
        question = f"In a few words, what is {name} in Python's {module}?"
        return _turns(question, first, "What else should I know about it?", rest.strip())
    return _turns(f"What does {name} in Python's module {module} do?", docstring)


def make_chats(count, seed):
    """`count` chats, each a list of messages; none twice."""
    draw = random.Random(seed)
    texts = _Texts(draw, count)
    if len(texts.functions) < count:
        raise SystemExit(f"the library is enough for {len(texts.functions)} chats, not {count}")
    kinds = draw.choices(list(_KINDS), list(_KINDS.values()), k=count)
    return [_chat(kind, texts) for kind in kinds]


def write_chats(path, chats):
    """As JSONL; returns the digest of the bytes."""
    lines = [json.dumps({"messages": chat}, ensure_ascii=False) + "\n" for chat in chats]
    data = "".join(lines).encode()
    Path(path).write_bytes(data)
    return hashlib.sha256(data).hexdigest()
