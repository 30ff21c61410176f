import json

from ince.train.log import RunLog


def test_lines_of_later_steps_and_torn_lines_go_when_a_run_is_resumed(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste', encoding="utf-8")
    with RunLog(path, from_step=2) as log:
        log.write(step=3, loss=1.0)
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert lines == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 1.0}]


def test_a_fresh_run_starts_an_empty_log(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0}\n', encoding="utf-8")
    with RunLog(path, from_step=0):
        pass
    assert path.read_text("utf-8") == ""
