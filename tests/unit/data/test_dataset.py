import json

import pytest

from ince.data.config import DataConfig
from ince.data.dataset import load_split
from ince.errors import ConfigError, DataError, TemplateError
from ince.files import sha256_file

GOOD = {"prompt": "Soru?", "completion": "Cevap."}


@pytest.fixture
def write(tmp_path):
    def _write(*rows, name="train.jsonl"):
        path = tmp_path / name
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        path.write_text("\n".join(lines), "utf-8")
        return path

    return _write


@pytest.fixture
def load(make_tokenizer):
    def _load(path, *, template="chatml", **options):
        config = DataConfig(train=str(path), **options)
        return load_split(path, config, make_tokenizer(template))

    return _load


def test_a_split_is_examples_and_the_account_of_them(write, load):
    path = write(GOOD, "", {"prompt": "Uzun?", "completion": "u" * 200})
    split = load(path, max_length=100)
    assert [e.source for e in split.examples] == ["train.jsonl, line 1", "train.jsonl, line 3"]
    assert split.report.to_dict() == {
        "path": str(path),
        "digest": sha256_file(path),
        "shape": "prompt-completion",
        "num_rows": 2,
        "num_examples": 2,
        "num_dropped": 0,
        "dropped": {},
        "num_tokens": sum(e.num_tokens for e in split.examples),
        "num_targets": sum(e.num_targets for e in split.examples),
        "num_truncated": 1,
        "num_split": 0,
        "truncation": "right",
        "num_lost_tokens": 125,
        "num_lost_targets": 125,
        "num_lost_stops": 1,
    }
    json.dumps(split.report.to_dict())


def test_a_system_message_goes_to_those_without_one(write, load, make_tokenizer):
    own = {"messages": [{"role": "system", "content": "Benim."}]}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    split = load(
        write({"messages": turns}, {"messages": own["messages"] + turns}), system="Kısa yaz."
    )
    shown = [make_tokenizer("chatml").decode(e.input_ids) for e in split.examples]
    assert "Kısa yaz." in shown[0]
    assert "Kısa yaz." not in shown[1]
    assert "Benim." in shown[1]


BAD = (
    "{broken",
    {"prompt": "Soru?", "completion": ""},
    GOOD,
    {"prompt": "u" * 200, "completion": "b"},
    {"prompt": "Soru?", "completion": "<|im_end|>"},
    [1],
)


def test_all_bad_rows_are_reported_together(write, load):
    path = write(*BAD)
    with pytest.raises(DataError) as caught:
        load(path, max_length=100)
    message = str(caught.value)
    assert "5 of 6 rows cannot be used" in message
    for line, reason in [
        (1, "not valid JSON"),
        (2, "empty assistant text"),
        (4, "no token to learn is left within max_length"),
        (5, "contains a control token"),
        (6, "not a JSON object"),
    ]:
        assert f"line {line}: " in message
        assert reason in message
    assert str(path) in message
    assert "on_bad_row: drop" in message


def test_bad_rows_can_be_dropped_and_are_counted(write, load):
    split = load(write(*BAD), max_length=100, on_bad_row="drop")
    assert len(split.examples) == 1
    assert split.report.num_dropped == 5
    assert split.report.num_rows == 6
    assert sum(split.report.dropped.values()) == 5
    assert [p.number for p in split.report.problems] == [1, 2, 4, 5, 6]


def test_ten_are_shown_and_the_rest_counted(write, load):
    with pytest.raises(DataError, match="… and 15 more") as caught:
        load(write(GOOD, *["{"] * 25))
    assert str(caught.value).count("not valid JSON") == 10


@pytest.mark.parametrize("on_bad_row", ["error", "drop"])
def test_nothing_but_bad_rows_is_an_error(write, load, on_bad_row):
    with pytest.raises(DataError, match="2 of 2 rows cannot be used") as caught:
        load(write({"prompt": "a", "completion": ""}, "{"), on_bad_row=on_bad_row)
    assert "on_bad_row" not in str(caught.value)


def test_rows_that_are_too_long_can_be_left_out(write, load):
    path = write(GOOD, {"prompt": "Uzun?", "completion": "u" * 200})
    split = load(path, max_length=100, truncation="drop")
    assert split.report.dropped == {"longer than max_length": 1}
    assert [e.num_truncated for e in split.examples] == [0]


LONG = {
    "messages": [
        {"role": role, "content": letter * 20}
        for letter, role in zip("abcdef", ["user", "assistant"] * 3, strict=True)
    ]
}
SHORT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


@pytest.mark.parametrize(
    ("truncation", "num_examples", "lost", "said"),
    [
        ("right", 2, (102, 42, 2), "1 cut at their end to 80 tokens; truncation: right lost 102"),
        ("left", 2, (122, 42, 2), "1 cut at their beginning to 80 tokens; truncation: left lost"),
        ("split", 4, (0, 0, 0), "1 rows split"),
        ("drop", 1, (182, 63, 3), "truncation: drop lost 182 tokens, 63 to learn, 3 stop tokens"),
    ],
)
def test_what_truncation_loses_is_counted(write, load, truncation, num_examples, lost, said):
    split = load(write(SHORT, LONG), max_length=80, truncation=truncation)
    report = split.report
    assert report.num_examples == len(split.examples) == num_examples
    assert (report.lost.num_tokens, report.lost.num_targets, report.lost.num_stops) == lost
    assert said in report.summary()
    assert report.to_dict()["num_split"] == (truncation == "split")


def test_parts_of_a_row_have_names_of_their_own(write, load):
    split = load(write(LONG), max_length=80, truncation="split")
    assert [example.source for example in split.examples] == [
        f"train.jsonl, line 1, part {number} of 3" for number in (1, 2, 3)
    ]


def test_what_fits_is_not_spoken_of(write, load):
    summary = load(write(SHORT)).report.summary()
    assert summary == "1 messages examples, 22 tokens, 2 of them learnt"


def test_plain_completions_need_no_template(write, load, make_tokenizer):
    options = {"template": None, "format": "plain-completion", "loss_on": "completion"}
    split = load(write({"prompt": "Soru: ", "completion": "Cevap."}), **options)
    [example] = split.examples
    assert make_tokenizer(None).decode(example.input_ids) == "Soru: Cevap.<|im_end|>"
    assert example.num_targets == len("Cevap.") + 1
    with pytest.raises(ConfigError, match="system message"):
        load(write({"prompt": "a", "completion": "b"}), system="s", **options)


def test_a_completion_is_asked_for_where_there_is_one(write, load):
    assert len(load(write(GOOD), loss_on="completion").examples) == 1
    with pytest.raises(ConfigError, match="messages rows have no completion"):
        load(write(SHORT), loss_on="completion")
    with pytest.raises(ConfigError, match="plain text has no completion"):
        load(write("Bir.", name="a.txt"), loss_on="completion")


def test_no_row_short_enough_is_an_error(write, load):
    with pytest.raises(DataError, match="all are longer than max_length") as caught:
        load(write(GOOD, {**GOOD, "completion": "u" * 90}), max_length=8, truncation="drop")
    assert "the shortest of 31 tokens" in str(caught.value)


def test_a_model_without_a_template_is_one_error(write, load):
    with pytest.raises(TemplateError, match="no chat template"):
        load(write(GOOD, GOOD), template=None, on_bad_row="drop")


def test_a_template_that_refuses_every_row_is_the_template_s_error(write, load):
    with pytest.raises(TemplateError, match="no system role here") as caught:
        load(write(GOOD, GOOD), template="mistral", system="Kısa yaz.")
    assert "2 of 2 rows cannot be used" in str(caught.value)
    assert "check the order and names of the roles" in str(caught.value)


def test_plain_text_needs_no_template(write, load, make_tokenizer):
    split = load(write("Bir.\n\nİki.", name="a.txt"), template=None)
    shown = [make_tokenizer(None).decode(e.input_ids) for e in split.examples]
    assert shown == ["Bir.<|im_end|>", "İki.<|im_end|>"]
    assert split.report.shape == "text"


def test_options_that_plain_text_does_not_have_are_refused_together(write, load):
    with pytest.raises(ConfigError) as caught:
        load(write("Bir.", name="a.txt"), system="x", loss_on="last")
    assert [problem.key for problem in caught.value.problems] == ["data.system", "data.loss_on"]


def test_a_form_that_is_named_is_not_guessed(write, load):
    path = write({"text": "a", "prompt": "b", "completion": "c"})
    assert load(path).report.shape == "prompt-completion"
    assert load(path, format="text").report.shape == "text"
    with pytest.raises(DataError, match="no list of messages"):
        load(path, format="messages")


def test_unknown_columns_name_the_file(write, load):
    path = write({"promt": "a", "completion": "b"})
    with pytest.raises(DataError, match="did you mean 'prompt'") as caught:
        load(path)
    assert caught.value.where == str(path)


def test_progress_is_told(write, make_tokenizer):
    path, seen = write(GOOD, GOOD), []
    load_split(
        path,
        DataConfig(train=str(path)),
        make_tokenizer("chatml"),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 2), (2, 2)]


def test_the_packaged_model_s_template_takes_a_real_file(write, smollm2_tokenizer):
    path = write({"soru": "İğde nedir?", "cevap": "Bir ağaçtır."})
    split = load_split(path, DataConfig(train=str(path)), smollm2_tokenizer)
    [example] = split.examples
    assert (
        smollm2_tokenizer.decode(
            [t for t, on in zip(example.input_ids, example.targets, strict=True) if on]
        )
        == "Bir ağaçtır.<|im_end|>"
    )
