import json

import pytest

from ince.data.config import DataConfig
from ince.data.inspect import inspect_file
from ince.errors import DataError, TemplateError


@pytest.fixture
def path(tmp_path):
    rows = [{"prompt": "Soru?", "completion": "x" * n, "id": n or None} for n in range(21)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n{", "utf-8")
    return path


def test_the_form_is_told_without_a_tokenizer(path):
    found = inspect_file(path)
    assert (found.kind, found.shape, found.num_rows) == ("jsonl", "prompt-completion", 22)
    assert found.columns == {"prompt": 21, "completion": 20, "id": 20}
    assert found.roles == {"user": 20, "assistant": 20}
    assert found.dropped == {"empty assistant text": 1, "not valid JSON": 1}
    assert [problem.number for problem in found.problems] == [1, 22]
    assert found.tokens is None
    assert found.example is None


def test_a_tokenizer_tells_the_lengths(path, make_tokenizer):
    found = inspect_file(path, make_tokenizer("chatml"), DataConfig(train="a", max_length=35))
    tokens = found.tokens
    assert tokens.num_examples == 20
    assert tokens.longest - tokens.shortest == 19
    assert sum(each.count for each in tokens.histogram) == 20
    assert tokens.histogram[0].low == tokens.shortest
    assert tokens.histogram[-1].low <= tokens.longest <= tokens.histogram[-1].high
    assert [row.number for row in tokens.longest_rows] == [21, 20, 19, 18, 17]
    assert tokens.num_truncated == sum(n > 35 for n in range(tokens.shortest, tokens.longest + 1))
    assert 0 < tokens.packed_share <= 1
    assert found.example.example.source == "a.jsonl, line 2"


def test_rows_left_out_for_their_length_are_among_the_dropped(path, make_tokenizer):
    config = DataConfig(train="a", max_length=35, truncation="drop")
    found = inspect_file(path, make_tokenizer("chatml"), config)
    assert found.dropped["longer than max_length"] == 20 - found.tokens.num_examples > 0
    assert found.tokens.longest <= 35


def test_the_facts_are_json(path, make_tokenizer):
    for tokenizer in (None, make_tokenizer("chatml")):
        facts = json.loads(json.dumps(inspect_file(path, tokenizer).to_dict()))
        assert facts["path"] == str(path)
        assert facts["num_dropped"] == 2
        assert "example" not in facts
    assert facts["tokens"]["num_examples"] == 20
    assert facts["problems"][0]["number"] == 1


def test_a_file_without_a_usable_row_is_still_examined(tmp_path, make_tokenizer):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "completion": ""}', "utf-8")
    found = inspect_file(path, make_tokenizer("chatml"))
    assert found.tokens is None
    assert found.dropped == {"empty assistant text": 1}


def test_what_stops_training_at_once_stops_inspection_too(path, tmp_path, make_tokenizer):
    with pytest.raises(TemplateError, match="no chat template"):
        inspect_file(path, make_tokenizer(None))
    with pytest.raises(DataError, match="no such data file"):
        inspect_file(tmp_path / "b.jsonl")
