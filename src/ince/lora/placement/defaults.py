"""Which layers are adapted when nothing is said: a table by the model's type, PEFT's.

It is a table of customs, not of what is possible: mostly the query and value projections, as in
the LoRA paper (section 7.1).
"""

from torch import nn

__all__ = ["default_targets"]

_Names = tuple[str, ...]

_QUERY_VALUE: _Names = ("q_proj", "v_proj")
_TABLE: tuple[tuple[_Names | str, _Names], ...] = (
    (
        _QUERY_VALUE,
        (
            *("bart", "gemma", "gemma2", "gemma3_text", "gpt_neo", "gptj", "llama", "llama4"),
            *("mistral", "mixtral", "opt", "qwen2", "qwen3", "stablelm"),
        ),
    ),
    (r".*language_model\..*\.(q_proj|v_proj)", ("gemma4",)),
    (("q", "v"), ("mt5", "t5")),
    (("q", "v", "q_proj", "v_proj"), ("blip-2",)),
    (("c_attn",), ("gpt2", "gpt_bigcode")),
    (("c_proj", "c_attn"), ("btlm",)),
    (
        ("query_key_value",),
        ("RefinedWeb", "RefinedWebModel", "bloom", "chatglm", "falcon", "gpt_neox"),
    ),
    (("query", "value"), ("bert", "electra", "layoutlm", "roberta", "xlm-roberta")),
    (("query_proj", "value_proj"), ("deberta-v2",)),
    (("in_proj",), ("deberta",)),
    (("Wqkv",), ("mpt",)),
    (("qkv_proj",), ("codegen",)),
    (("q_proj", "v_proj", "fc1", "fc2"), ("phi",)),
    (("q_proj", "k_proj", "v_proj", "o_proj"), ("nemotron_h",)),
    (("key", "value", "receptance", "output"), ("rwkv",)),
    (("r_proj", "k_proj", "v_proj", "o_proj", "key", "value"), ("rwkv7",)),
)
_BY_TYPE = {model_type: names for names, types in _TABLE for model_type in types}


def default_targets(model: nn.Module, *, known_only: bool) -> _Names | str | None:
    """Names, or an expression, for a config without `target_modules`.

    Args:
        model: a transformers model, or one with a config like theirs.
        known_only: give None for a type that is not in the table; else query and value.
    """
    config: object = getattr(model, "config", None)
    found = config.get("model_type") if isinstance(config, dict) else None
    model_type = found if isinstance(found, str) else getattr(config, "model_type", None)
    names = _BY_TYPE.get(model_type) if isinstance(model_type, str) else None
    return names if names is not None or known_only else _QUERY_VALUE
