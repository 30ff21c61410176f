"""With the real package: what is written reads back, over a resume as well."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ince.train.sinks.sink import SinkContext
from ince.train.sinks.tensorboard import TensorBoardSink


def sit(folder, first, last, *, value):
    sink = TensorBoardSink(SinkContext("run", folder))
    sink.start({"model": {"base": "m"}}, first)
    for step in range(first + 1, last + 1):
        sink.log(step, {"train/loss": value + step})
    sink.finish("interrupted")


def read(folder):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_a_resumed_run_has_each_step_once(tmp_path):
    sit(tmp_path, 0, 5, value=0.0)
    sit(tmp_path, 3, 8, value=100.0)
    found = read(tmp_path).Scalars("train/loss")
    assert [event.step for event in found] == list(range(1, 9))
    assert [event.value for event in found] == [1, 2, 3, 104, 105, 106, 107, 108]


def test_the_recipe_is_there(tmp_path):
    sit(tmp_path, 0, 1, value=0.0)
    (event, *_) = read(tmp_path).Tensors("recipe/text_summary")
    assert b'"base": "m"' in event.tensor_proto.string_val[0]


def test_what_was_never_started_can_be_finished(tmp_path):
    TensorBoardSink(SinkContext("run", tmp_path)).finish("failed")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [0.0, -1e30, 1e-30])
def test_values_come_back(tmp_path, value):
    sit(tmp_path, 0, 1, value=value)
    (event,) = read(tmp_path).Scalars("train/loss")
    assert event.value == pytest.approx(value + 1)
