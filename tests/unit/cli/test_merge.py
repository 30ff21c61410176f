import json

import pytest
import torch

from ince import publish


def test_a_merged_model_is_proved_and_stands_alone(command, adapter_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    out_folder = tmp_path / "merged"
    before = {p: p.read_bytes() for p in adapter_folder.iterdir()}
    code, out, err = command("merge", str(adapter_folder), "--out", str(out_folder))
    assert code == 0, err
    assert str(out_folder) in out
    assert "merged model agrees with the adapter" in out
    model = AutoModelForCausalLM.from_pretrained(out_folder)
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert next(model.parameters()).dtype == torch.bfloat16
    proof = json.loads((out_folder / "merge.json").read_text())
    assert proof["parity"]["holds"] is True
    assert {p: p.read_bytes() for p in adapter_folder.iterdir()} == before


def test_the_merged_model_says_what_the_adapter_says(command, adapter_folder, tmp_path):
    code, out, _ = command("merge", str(adapter_folder), "--out", str(tmp_path / "m"), "--json")
    assert code == 0
    found = json.loads(out)
    assert found["model"] == str(tmp_path / "m")
    assert found["parity"]["max_abs_logit_diff"] <= found["parity"]["limit"]
    ask = ("--prompt", "Hi", "--max-new-tokens", "2")
    assert command("chat", found["model"], *ask)[0] == 0


def test_a_proof_that_does_not_hold_is_exit_3_and_leaves_nothing(
    command, adapter_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(publish, "ROUNDED_LIMIT", -1.0)
    out_folder = tmp_path / "merged"
    code, out, _ = command("merge", str(adapter_folder), "--out", str(out_folder), "--json")
    assert code == 3
    assert json.loads(out)["error"]["type"] == "ProofError"
    assert not out_folder.exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".merged")] == []
    assert (adapter_folder / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_in_the_way_stays(command, adapter_folder, tmp_path, kind):
    target = tmp_path / "taken"
    kept = target
    if kind == "folder":
        target.mkdir()
        kept = target / "mine.txt"
    kept.write_text("mine")
    code, _, err = command("merge", str(adapter_folder), "--out", str(target))
    assert code == 2
    assert str(target) in err
    assert kept.read_text() == "mine"


def test_a_model_has_nothing_to_merge(command, model_folder, tmp_path):
    code, _, err = command("merge", str(model_folder), "--out", str(tmp_path / "m"))
    assert code == 2
    assert "no adapter to merge" in err
    assert not (tmp_path / "m").exists()
