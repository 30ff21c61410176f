import json

import pytest

from ince.errors import InputError
from ince.report.run_files import read_run_files


def test_a_whole_run_is_read_without_notes(run_folder):
    run = read_run_files(run_folder(num_steps=80))
    assert not run.notes
    assert len(run.curves["loss"]) == 80
    assert len(run.curves["eval_loss"]) == 8
    assert len(run.samples) == 20
    assert len(run.answers) == 16
    assert run.record["status"] == "done"


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        read_run_files(tmp_path)
    with pytest.raises(InputError, match="not a run folder"):
        read_run_files(tmp_path / "nowhere")


@pytest.mark.parametrize("missing", ["run.json", "log.jsonl", "eval.json", "samples.jsonl"])
def test_a_missing_file_is_noted_and_the_rest_is_read(run_folder, missing):
    run = read_run_files(run_folder(without=(missing,)))
    # The record repeats the evaluation, so that nothing is lost with eval.json.
    assert [note.split(":")[0] for note in run.notes] == (
        [missing] if missing != "eval.json" else []
    )
    assert run.evaluation


def test_a_torn_last_line_is_passed_over_in_silence(run_folder):
    folder = run_folder(num_steps=10)
    with (folder / "log.jsonl").open("a") as stream:
        stream.write('{"step": 11, "lo')
    run = read_run_files(folder)
    assert len(run.curves["loss"]) == 10
    assert not run.notes


def test_damaged_lines_are_counted_and_left_out(run_folder):
    folder = run_folder(num_steps=3)
    with (folder / "log.jsonl").open("ab") as stream:
        stream.write(
            b'not json\n[1]\n\xff\xfe\n\n{"step": "4", "loss": 1}\n{"step": 5, "loss": 1.5}\n'
        )
    run = read_run_files(folder)
    assert list(run.curves["loss"].steps) == [1, 2, 3, 5]
    assert run.notes == ["log.jsonl: 3 lines are not a JSON object and left out."]


def test_damaged_objects_are_noted(run_folder):
    folder = run_folder()
    (folder / "run.json").write_text('{"status": "do')
    (folder / "eval.json").write_text("[" * 100_000)
    run = read_run_files(folder)
    assert run.record == {}
    assert run.evaluation == {}
    assert len(run.notes) == 2


def test_values_that_are_not_finite_are_counted(tmp_path):
    lines = ['{"step": 1, "loss": NaN}', '{"step": 2, "loss": "NaN"}', '{"step": 3, "loss": 2}']
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    run = read_run_files(tmp_path)
    assert list(run.curves["loss"].values) == [2.0]
    assert "log.jsonl: 2 values of loss are not finite numbers and not drawn." in run.notes


def test_of_a_step_written_twice_the_later_line_counts(tmp_path):
    rows = [(1, 4.0), (2, 3.0), (3, 2.9), (2, 2.5), (3, 2.0), (4, 1.5)]
    (tmp_path / "log.jsonl").write_text(
        "".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in rows)
    )
    curve = read_run_files(tmp_path).curves["loss"]
    assert list(zip(curve.steps, curve.values, strict=True)) == [(1, 4), (2, 2.5), (3, 2), (4, 1.5)]
