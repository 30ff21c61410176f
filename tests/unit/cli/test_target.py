import json

import pytest

from ince.cli.target import find_target
from ince.errors import AdapterError, CorruptFileError, InputError
from ince.quant import NF4Config


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "some-adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "owner/base", "revision": "v1"})
    )
    return folder


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    record = {
        "format": "ince-run/1",
        "status": "done",
        "recipe": {
            "model": {
                "base": "smollm2-135m-instruct",
                "quantize": "nf4",
                "double_quant": False,
                "compute_dtype": "float32",
            },
            "data": {"train": "t.jsonl"},
        },
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_anything_else_is_a_model(tmp_path):
    found = find_target("smollm2-135m-instruct")
    assert (found.base, found.adapter, found.quantization) == ("smollm2-135m-instruct", None, None)
    assert find_target("x", quantize="nf4").quantization == NF4Config()


def test_an_adapter_names_its_base(adapter):
    found = find_target(str(adapter))
    assert (found.base, found.revision, found.adapter) == ("owner/base", "v1", adapter)
    assert found.quantization is None
    moved = find_target(str(adapter), base="elsewhere/base")
    assert (moved.base, moved.revision) == ("elsewhere/base", None)


def test_an_adapter_without_a_base_says_so(adapter):
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(AdapterError, match="which base"):
        find_target(str(adapter))
    assert find_target(str(adapter), base="b").base == "b"


@pytest.mark.parametrize("inside", ["", "adapter"])
def test_a_run_is_loaded_as_it_was_trained(run, inside):
    found = find_target(str(run / inside))
    assert found.base == "smollm2-135m-instruct"
    assert found.adapter == run / "adapter"
    assert found.run == run
    assert found.quantization == NF4Config(double_quant=False, compute_dtype="float32")
    assert found.compute_dtype == "float32"
    assert find_target(str(run), quantize="none").quantization is None


def test_a_run_without_an_adapter_is_to_be_finished(run):
    (run / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(InputError, match="no adapter yet") as caught:
        find_target(str(run))
    assert f"ince train {run}" in (caught.value.do or "")


@pytest.mark.parametrize("recipe", [None, {}, {"model": 3}, {"model": {"base": ""}}])
def test_a_record_that_names_no_model_is_corrupt(run, recipe):
    (run / "run.json").write_text(json.dumps({"format": "ince-run/1", "recipe": recipe}))
    with pytest.raises(CorruptFileError, match="which model"):
        find_target(str(run))


def test_a_base_for_a_model_is_a_mistake():
    with pytest.raises(InputError, match="adapter or a run"):
        find_target("smollm2-135m-instruct", base="x")
