"""A chat template with ``{% generation %}`` marks, for libraries that find targets by them.

TRL's loss on assistant turns alone needs marks, which most models' templates lack, and it knows
how to mark the templates of some. For templates of the ChatML kind this writes them around what a
model says: the words and the stop token.
"""

import re

_TURN = re.compile(
    r"\{\{-?\s*'<\|im_start\|>'\s*\+\s*message\['role'\]\s*\+\s*'\s*(?:\\n)?'\s*\+\s*"
    r"message\['content'\]\s*\+\s*'<\|im_end\|>'\s*\+\s*'\s*(?:\\n)?'\s*-?\}\}"
)
_MARKED = (
    "{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}TURN{% endif %}"
)
_CHAT = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]


def marked_template(tokenizer):
    """The tokenizer's template with marks; it renders what the template did.

    Raises:
        ValueError: it is of another kind.
    """
    template = tokenizer.chat_template
    if len(_TURN.findall(template)) != 1:
        raise ValueError("not a ChatML template that is known here")
    marked = _TURN.sub(lambda found: _MARKED.replace("TURN", found[0]), template)
    before, after = (
        tokenizer.apply_chat_template(_CHAT, chat_template=each, tokenize=False)
        for each in (template, marked)
    )
    if before != after:
        raise ValueError("the marked template does not render what the template does")
    return marked


def tokens_and_targets(tokenizer, template, chat):
    """(ids, whether each is a target) of a chat, by a template with marks."""
    encoded = tokenizer.apply_chat_template(
        chat,
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return encoded["input_ids"], [bool(mask) for mask in encoded["assistant_masks"]]
