import io

from rich.console import Console

from ince.record import RunRecord
from ince.report.terminal import before_after_table, run_summary


def printed(renderable, width=80):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(renderable)
    return console.file.getvalue()


def test_the_table_fits_eighty_columns(made_up):
    text = printed(before_after_table(made_up.evaluation()))
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "…" not in text
    for expected in ("66.4%", "+66.4", "+60.2 to +72.6", "▲ better", "▼ worse", "95% interval"):
        assert expected in text


def test_without_scores_the_table_is_empty():
    assert before_after_table({}).row_count == 0


def test_a_label_is_text_and_not_markup(made_up):
    evaluation = made_up.evaluation()
    evaluation["metrics"][0]["label"] = "[red]a[/nothing]\x1b[31m"
    assert "[red]a[/nothing]␛" in printed(before_after_table(evaluation), width=160)


def test_the_summary_of_a_run(run_folder):
    text = printed(run_summary(RunRecord.read(run_folder())))
    for expected in (
        "✓ done",
        "SmolLM2-135M-Instruct",
        "Inflection exact match rose from 0.0% to 66.4%.",
        "English lost 1.2%",
        "2.19 GiB",
        "3.910 → 0.410",
        "✓ English kept",
    ):
        assert expected in text


def test_the_summary_of_a_failed_run_says_why():
    error = {"type": "TrainingError", "what": "the loss is not finite"}
    text = printed(run_summary({"status": "failed", "error": error, "proofs": [{"name": "x"}, 3]}))
    assert "✗ failed" in text
    assert "the loss is not finite" in text
    assert "? x" in text
    assert "?" in printed(run_summary({}))
