from ince.report.outcome import (
    answers_by_prompt,
    proofs,
    sample_counts,
    samples_in_turn,
    score_groups,
)
from ince.report.run_files import Answer, Sample
from ince.report.scores import read_scores


def test_samples_are_taken_in_turn_and_shown_by_task():
    rows = [Sample(task, str(i), "", "", "", None, None) for i, task in enumerate("aaaaabbbc")]
    assert [row.task + row.prompt for row in samples_in_turn(rows, 5)] == [
        "a0",
        "a1",
        "b5",
        "b6",
        "c8",
    ]
    assert len(samples_in_turn(rows, 20)) == 9


def test_right_answers_are_counted_where_known():
    rows = [
        Sample("a_b", "", "", "", "", False, True),
        Sample("a_b", "", "", "", "", True, True),
        Sample("c", "", "", "", "", None, True),
    ]
    assert sample_counts(rows) == ["a b: 1 right before, 2 after, of 2"]


def test_answers_are_gathered_by_prompt():
    answers = [Answer(step, prompt, "x", "y") for step in range(40) for prompt in "pq"]
    found = answers_by_prompt(answers)
    assert [question["prompt"] for question in found] == ["p", "q"]
    assert [answer.step for answer in found[0]["given"]] == [0, 8, 16, 23, 31, 39]


def test_proofs_without_a_verdict_are_not_decided():
    found = proofs({"proofs": [{"name": "kept_it", "value": 1.5, "unit": "%"}, {"value": 3}, None]})
    assert [(p["name"], p["value"], p["limit"], p["holds"]) for p in found] == [
        ("Kept it", "1.5%", "", None)
    ]


def test_bars_of_a_table_have_zero_at_one_place(made_up):
    scores = read_scores(made_up.evaluation())
    bars = [row["interval"] for group in score_groups(scores) for row in group["rows"]]
    assert len({bar.zero for bar in bars}) == 1
    for score, bar in zip(scores, bars, strict=True):
        is_right = float(bar.at[:-1]) > float(bar.zero[:-1])
        assert is_right == (score.verdict == "better")
        assert 0 <= float(bar.low[:-1]) <= float(bar.at[:-1]) <= float(bar.high[:-1]) <= 100


def test_a_heading_that_labels_repeat_is_left_out(made_up):
    groups = score_groups(read_scores(made_up.evaluation()))
    assert [group["heading"] for group in groups] == ["", "", "held-out rows", ""]
