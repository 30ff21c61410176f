"""Answers follow their grammar, and a grammar that cannot be compiled is refused."""

import json
import re

import pytest
import torch

from ince.errors import InputError
from ince.serve.sampling import NO_TOKEN, GrammarVocabulary, RowState, SamplingOptions, choose

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "n": {"enum": [1, 2]}},
    "required": ["name", "n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def vocabulary(small_tokenizer) -> GrammarVocabulary:
    return GrammarVocabulary(small_tokenizer, len(small_tokenizer) + 5)


def answer(vocabulary, grammar, tokenizer, seed: int) -> str:
    """Of a model that thinks every token as likely."""
    row = RowState(SamplingOptions(max_tokens=300, grammar=grammar), [], seed)
    said: list[int] = []
    logits = torch.zeros(1, vocabulary.num_tokens)
    while not said or said[-1] != tokenizer.eos_token_id:
        (token,), _ = choose(logits, [row])
        assert row.error is None, row.error
        assert 0 <= token < len(tokenizer)
        row.add(token)
        said.append(token)
        assert len(said) < 300
    return tokenizer.decode(said, skip_special_tokens=True)


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_follows_a_schema(vocabulary, small_tokenizer, seed):
    found = json.loads(answer(vocabulary, vocabulary.json_schema(SCHEMA), small_tokenizer, seed))
    assert set(found) == {"name", "n"}
    assert len(found["name"]) <= 8
    assert found["n"] in (1, 2)


def test_an_answer_matches_an_expression(vocabulary, small_tokenizer):
    grammar = vocabulary.regex(r"[a-c]{3}-\d{2}")
    for seed in range(3):
        text = answer(vocabulary, grammar, small_tokenizer, seed)
        assert re.fullmatch(r"[a-c]{3}-\d{2}", text)


def test_an_answer_is_one_of_the_choices(vocabulary, small_tokenizer):
    choices = ["evet", "hayır", 'ne "o", ne\\bu', "👍"]
    grammar = vocabulary.choice(choices)
    found = {answer(vocabulary, grammar, small_tokenizer, seed) for seed in range(40)}
    assert found <= set(choices)
    assert len(found) > 1


def test_an_answer_is_any_object(vocabulary, small_tokenizer):
    options = SamplingOptions(max_tokens=9, temperature=0, grammar=vocabulary.json_object())
    (token,), _ = choose(torch.zeros(1, vocabulary.num_tokens), [RowState(options, [], 0)])
    assert small_tokenizer.decode([token]).startswith("{")


def test_a_greedy_answer_takes_the_likeliest_that_may_come(vocabulary, small_tokenizer):
    options = SamplingOptions(max_tokens=9, temperature=0, grammar=vocabulary.choice(["evet"]))
    plain = SamplingOptions(max_tokens=9, temperature=0)
    logits = torch.zeros(2, vocabulary.num_tokens)
    logits[:, 77] = 9
    tokens, _ = choose(logits, [RowState(options, [], 0), RowState(plain, [], 0)])
    assert "evet".startswith(small_tokenizer.decode([tokens[0]]))
    assert tokens[1] == 77


def test_a_token_that_cannot_come_is_an_error_of_its_row_alone(vocabulary, small_tokenizer):
    grammar = vocabulary.choice(["evet"])
    options = SamplingOptions(max_tokens=9, temperature=0, grammar=grammar)
    rows = [RowState(options, [], 0), RowState(options, [], 1)]
    rows[0].add(small_tokenizer("zzz")["input_ids"][0])
    tokens, _ = choose(torch.zeros(2, vocabulary.num_tokens), rows)
    assert tokens[0] == NO_TOKEN
    assert isinstance(rows[0].error, InputError)
    assert tokens[1] != NO_TOKEN


@pytest.mark.parametrize(
    "make",
    [
        lambda v: v.json_schema({"type": "strange"}),
        lambda v: v.json_schema({"type": "string", "pattern": "(((("}),
        lambda v: v.json_schema({"$ref": "http://example.com/x"}),
        lambda v: v.json_schema({"a": float("nan")}),
        lambda v: v.json_schema({"enum": ["x" * 200_000]}),
        lambda v: v.regex("(a"),
        lambda v: v.choice([]),
        lambda v: v.choice(["a", ""]),
    ],
    ids=["type", "pattern", "reference", "nan", "large", "expression", "none", "empty"],
)
def test_what_cannot_be_compiled_is_refused(vocabulary, make):
    with pytest.raises(InputError):
        make(vocabulary)


def test_a_grammar_and_no_end_are_refused_together(vocabulary):
    with pytest.raises(InputError, match="ends with it"):
        SamplingOptions(max_tokens=1, ignore_eos=True, grammar=vocabulary.json_object())


def test_a_tokenizer_of_another_kind_is_refused():
    with pytest.raises(InputError, match="cannot be used with grammars"):
        GrammarVocabulary(object(), 10)  # type: ignore[arg-type]
