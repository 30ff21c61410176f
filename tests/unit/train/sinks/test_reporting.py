"""Sinks over small fakes of their libraries: what they are told, and what may break."""

import json
import math
import sys
import types

import pytest

from ince.errors import ConfigError, InterruptedRunError
from ince.train import StepReport
from ince.train.sinks import SINK_NAMES, reporting, require_installed

CONFIG = {"model": {"base": "m", "quantize": None}, "train": {"lr": 1e-3}}


class Watcher:
    def __init__(self):
        self.seen, self.lines = [], []

    def started(self, first_step, num_steps):
        self.seen.append(("started", first_step, num_steps))

    def stepped(self, report):
        self.seen.append(("stepped", report.step))

    def evaluated(self, step, loss):
        self.seen.append(("evaluated", step, loss))

    def said(self, line):
        self.lines.append(line)


def report(step, **changes):
    values = {
        "step": step,
        "loss": 3.0 / step,
        "lr": 1e-3,
        "grad_norm": 1.0,
        "num_tokens": 10,
        "num_targets": 5,
        "total_tokens": 10 * step,
        "total_targets": 5 * step,
        "seconds": 0.5,
        "peak_bytes": 2**30,
    }
    return StepReport(**(values | changes))


def go(folder, names, *, first=0, last=3, watcher=None, config=CONFIG):
    with reporting(watcher or Watcher(), names, run_dir=folder, config=config) as told:
        told.started(first, last)
        for step in range(first + 1, last + 1):
            told.stepped(report(step))
        told.evaluated(last, 1.5)


class Calls:
    """A stand-in for a library: whatever is called is remembered with its arguments."""

    def __init__(self):
        self.made = []

    def __call__(self, name, result=None):
        def called(*args, **kwargs):
            self.made.append((name, args, kwargs))
            return result

        return called

    def of(self, name):
        return [(args, kwargs) for called, args, kwargs in self.made if called == name]


@pytest.fixture
def wandb(monkeypatch):
    calls = Calls()
    run = types.SimpleNamespace(
        log=calls("log"), finish=calls("finish"), define_metric=calls("define_metric")
    )
    fake = types.ModuleType("wandb")
    fake.init = calls("init", run)
    fake.Settings = lambda **settings: settings
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return calls


@pytest.fixture
def mlflow(monkeypatch):
    calls = Calls()
    run = types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))
    client = types.SimpleNamespace(
        get_experiment_by_name=calls("get_experiment_by_name"),
        create_experiment=calls("create_experiment", "e1"),
        create_run=calls("create_run", run),
        update_run=calls("update_run"),
        log_batch=calls("log_batch"),
        set_terminated=calls("set_terminated"),
    )
    fake, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    fake.MlflowClient = calls("client", client)
    entities.Param = lambda key, value: (key, value)
    entities.Metric = lambda key, value, timestamp, step: (key, value, step)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.fixture
def trackio(monkeypatch):
    calls = Calls()
    fake = types.ModuleType("trackio")
    fake.init = calls("init", types.SimpleNamespace(log=calls("log")))
    fake.finish = calls("finish")
    monkeypatch.setitem(sys.modules, "trackio", fake)
    monkeypatch.delenv("TRACKIO_PROJECT", raising=False)
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    return calls


def test_without_sinks_everything_is_passed_on_and_nothing_written(tmp_path):
    watcher = Watcher()
    go(tmp_path, [], watcher=watcher)
    steps = [("stepped", 1), ("stepped", 2), ("stepped", 3)]
    assert watcher.seen == [("started", 0, 3), *steps, ("evaluated", 3, 1.5)]
    assert list(tmp_path.iterdir()) == []


def test_wandb_is_told_numbers_by_step_and_goes_on_by_its_id(tmp_path, wandb):
    go(tmp_path, ["wandb"])
    (_, first) = wandb.of("init")[0]
    assert first["project"] == "ince"
    assert first["config"] == CONFIG
    assert first["resume"] == "allow"
    logged = [args[0] for args, _ in wandb.of("log")]
    assert [line["train/step"] for line in logged] == [1, 2, 3, 3]
    assert logged[1]["train/loss"] == 1.5
    assert logged[3] == {"eval/loss": 1.5, "train/step": 3}
    assert wandb.of("finish") == [((), {"exit_code": 0})]
    go(tmp_path, ["wandb"], first=2)
    assert wandb.of("init")[1][1]["id"] == first["id"]


def test_wandb_is_kept_from_sending_what_is_of_the_machine(tmp_path, wandb):
    go(tmp_path, ["wandb"])
    settings = wandb.of("init")[0][1]["settings"]
    assert settings["disable_git"]
    assert settings["disable_code"]
    assert settings["x_disable_meta"]
    assert settings["x_disable_stats"]
    assert settings["console"] == "off"


def test_mlflow_is_told_by_step_in_a_database_of_the_run_and_goes_on_by_its_id(tmp_path, mlflow):
    go(tmp_path, ["mlflow"])
    (_, made) = mlflow.of("client")[0]
    assert made["tracking_uri"].startswith(f"sqlite:///{tmp_path}")
    batches = [kwargs for _, kwargs in mlflow.of("log_batch")]
    assert batches[0]["params"] == [
        ("model.base", "m"),
        ("model.quantize", "None"),
        ("train.lr", "0.001"),
    ]
    assert ("train/loss", 1.5, 2) in batches[2]["metrics"]
    assert batches[-1]["metrics"] == [("eval/loss", 1.5, 3)]
    assert mlflow.of("set_terminated") == [(("r1",), {"status": "FINISHED"})]
    go(tmp_path, ["mlflow"], first=2)
    assert len(mlflow.of("create_run")) == 1
    assert mlflow.of("update_run") == [(("r1",), {"status": "RUNNING"})]


def test_mlflow_goes_where_the_environment_says(tmp_path, mlflow, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    go(tmp_path, ["mlflow"])
    assert mlflow.of("client")[0][1] == {"tracking_uri": "http://localhost:5000"}
    assert not (tmp_path / "sinks" / "mlflow").exists()


def test_trackio_is_told_by_step_and_goes_on_by_its_name(tmp_path, trackio):
    go(tmp_path, ["trackio"])
    go(tmp_path, ["trackio"], first=2)
    names = [kwargs["name"] for _, kwargs in trackio.of("init")]
    assert names[0] == names[1]
    assert trackio.of("log")[1][0][0]["train/loss"] == 1.5
    assert trackio.of("log")[1][1] == {"step": 2}
    assert len(trackio.of("finish")) == 2


def test_numbers_that_are_not_finite_are_left_out(tmp_path, wandb):
    with reporting(Watcher(), ["wandb"], run_dir=tmp_path, config=CONFIG) as told:
        told.started(0, 1)
        told.stepped(report(1, loss=math.nan, grad_norm=math.inf, skipped=True, num_skipped=1))
    (line,) = [args[0] for args, _ in wandb.of("log")]
    assert "train/loss" not in line
    assert "train/grad_norm" not in line
    assert line["train/skipped_steps"] == 1


@pytest.mark.parametrize("place", ["init", "log", "finish"])
def test_a_sink_that_fails_is_said_once_and_the_run_goes_on(tmp_path, wandb, monkeypatch, place):
    def fail(*_args, **_kwargs):
        raise OSError("the server\nis away")

    owner = sys.modules["wandb"]
    if place == "init":
        monkeypatch.setattr(owner, "init", fail)
    else:
        run = owner.init()
        setattr(run, place, fail)
    watcher = Watcher()
    go(tmp_path, ["wandb"], watcher=watcher)
    assert watcher.seen[-1] == ("evaluated", 3, 1.5)
    (line,) = watcher.lines
    assert line.startswith("no more is reported to wandb: the server is away")


def test_one_that_fails_does_not_take_others_along(tmp_path, wandb, mlflow, monkeypatch):
    monkeypatch.setattr(sys.modules["wandb"], "init", Calls()("init", None))  # has no methods
    watcher = Watcher()
    go(tmp_path, ["wandb", "mlflow"], watcher=watcher)
    assert len(watcher.lines) == 1
    assert len(mlflow.of("set_terminated")) == 1


def test_one_that_holds_up_the_run_is_dropped(tmp_path, wandb, monkeypatch):
    monkeypatch.setattr(sys.modules["ince.train.sinks.reporting"], "_MAX_SECONDS", -1.0)
    watcher = Watcher()
    go(tmp_path, ["wandb"], watcher=watcher)
    assert len(wandb.of("log")) == 1
    assert "a step took 0 s to report" in watcher.lines[0]


@pytest.mark.parametrize(
    ("error", "status"),
    [(InterruptedRunError("x"), "KILLED"), (KeyboardInterrupt(), "KILLED"), (OSError(), "FAILED")],
)
def test_how_a_run_ended_is_told(tmp_path, mlflow, error, status):
    def run():
        with reporting(Watcher(), ["mlflow"], run_dir=tmp_path, config=CONFIG) as told:
            told.started(0, 1)
            raise error

    with pytest.raises(type(error)):
        run()
    assert mlflow.of("set_terminated") == [(("r1",), {"status": status})]


def test_ids_that_are_damaged_begin_anew(tmp_path, wandb):
    go(tmp_path, ["wandb"])
    (tmp_path / "sinks" / "ids.json").write_text("{")
    go(tmp_path, ["wandb"])
    ids = [kwargs["id"] for _, kwargs in wandb.of("init")]
    assert ids[0] != ids[1]
    assert json.loads((tmp_path / "sinks" / "ids.json").read_text())["wandb"] == ids[1]


def test_sinks_that_are_not_installed_are_named_together(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install wandb trackio") as caught:
        require_installed(["wandb", "trackio"])
    assert len(caught.value.problems) == 2
    require_installed([])
    assert SINK_NAMES == ("tensorboard", "wandb", "mlflow", "trackio")
