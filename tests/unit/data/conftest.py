"""Tokenizers made in a moment, with chat templates that behave in all the ways that occur."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    # A header with two line ends, a beginning token, trimmed text.
    "llama3": (
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<|start|>' + m['role'] + '<|end|>\n\n' + m['content'] | trim + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
    ),
    "trims": CHATML.replace("m['content'] +", "m['content'] | trim +"),
    # No header before a reply: it starts right after the question.
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
        "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% elif m['role'] == 'system' %}"
        "{{ raise_exception('no system role here') }}{% else %}"
        "{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
    "strict": (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # Earlier replies lose what they thought; the last one gets an empty thought if it has none.
    "drops_reasoning": (
        "{% for m in messages %}{% set c = m['content'] %}"
        "{% if m['role'] == 'assistant' and not loop.last and '</think>' in c %}"
        "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "{% if m['role'] == 'assistant' and loop.last and '</think>' not in c %}"
        "{% set c = '<think>\n\n</think>\n\n' + c %}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + c + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # The system message moves to the last question, so earlier prompts are no prefix.
    "moves_system": (
        "{% set users = messages | selectattr('role', 'equalto', 'user') | list %}"
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|im_start|>user\n' }}"
        "{% if m == users[-1] and messages[0]['role'] == 'system' %}"
        "{{ messages[0]['content'] + '\n\n' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}"
        "{% elif m['role'] == 'assistant' %}"
        "{{ '<|im_start|>assistant\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "no_stop": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "no_generation_prompt": (
        "{% for m in messages %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    ),
    "shouts": CHATML.replace("m['content'] +", "m['content'] | upper +"),
    # An end of its own for the last reply.
    "two_stops": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
        "{% if loop.last and m['role'] == 'assistant' %}{{ '<|end|>' }}{% else %}"
        "{{ '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "broken": "{{ messages[0].content.nothing.here }}",
}
# No system role: it becomes part of the first question. The stop is not the tokenizer's eos.
TEMPLATES["gemma"] = (
    "{{ bos_token }}{% set told = messages[0]['content'] + '\n\n' "
    "if messages[0]['role'] == 'system' else '' %}"
    "{% for m in (messages[1:] if told else messages) %}"
    "{{ '<|start|>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{{ (told if loop.first else '') + m['content'] | trim + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>model\n' }}{% endif %}"
)
# Headers that are no tokens of their own.
TEMPLATES["zephyr"] = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# Every reply keeps what it thought; the prompt begins the thought.
TEMPLATES["thinks"] = CHATML.replace(
    "{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>\n' }}"
)
TEMPLATES["chatml_with_marks"] = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The template that moves the system message, with marks: around the words, or also the stop.
_REPLY = "{{ '<|im_start|>assistant\n' + m['content'] + '<|im_end|>\n' }}"
TEMPLATES["marks"] = TEMPLATES["moves_system"].replace(
    _REPLY,
    "{{ '<|im_start|>assistant\n' }}{% generation %}{{ m['content'] + '<|im_end|>\n' }}"
    "{% endgeneration %}",
)
TEMPLATES["marks_without_stop"] = TEMPLATES["moves_system"].replace(
    _REPLY,
    "{{ '<|im_start|>assistant\n' }}{% generation %}{{ m['content'] }}{% endgeneration %}"
    "{{ '<|im_end|>\n' }}",
)
TEMPLATES["marks_header"] = TEMPLATES["moves_system"].replace(
    _REPLY,
    "{% generation %}{{ 'x' }}{% endgeneration %}" + _REPLY + "{% generation %}{{ 'y' }}"
    "{% endgeneration %}",
)
CONTROL = ("<s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>")


def _wrap(tokenizer: Tokenizer, template: str | None) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in CONTROL])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )
    made.chat_template = template
    return made


@pytest.fixture(scope="session")
def make_tokenizer():
    """A tokenizer of bytes with a template of `TEMPLATES`, and merges such as ("Ċ", "Ċ")."""

    def make(template: str | None, merges: tuple[tuple[str, str], ...] = ()):
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        words = [*letters, *(a + b for a, b in merges)]
        vocab = {word: i for i, word in enumerate(words)}
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
        # Without the pattern, a merge may reach across any two characters.
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        return _wrap(tokenizer, None if template is None else TEMPLATES[template])

    return make


@pytest.fixture(scope="session")
def make_spaced_tokenizer():
    """A tokenizer that begins every text with a space, as Llama 2's does."""

    def make(template: str):
        words = ["<unk>", *(chr(i) for i in range(10, 128)), "▁", "▁e", "▁b", "s▁"]
        merges = [("▁", "e"), ("▁", "b")]
        vocab = {word: i for i, word in enumerate(words)}
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
        return _wrap(tokenizer, TEMPLATES[template])

    return make
