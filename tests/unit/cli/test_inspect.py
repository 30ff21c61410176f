import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ince.formats.adapter import write_adapter


@pytest.fixture
def changed(adapter_folder, tmp_path):
    """A copy of the adapter, its config and tensors changed."""

    def make(name="changed", change=lambda tensors: tensors, **config):
        folder = tmp_path / name
        shutil.copytree(adapter_folder, folder)
        values = json.loads((folder / "adapter_config.json").read_text()) | config
        (folder / "adapter_config.json").write_text(json.dumps(values))
        weights = folder / "adapter_model.safetensors"
        save_file(change(load_file(weights)), weights, metadata={"format": "pt"})
        return folder

    return make


def test_what_it_is_and_what_it_does(command, adapter_folder, model_folder):
    code, out, err = command("inspect", str(adapter_folder))
    assert code == 0, err
    for word in ("LoRA", "rank           4", "scale          2", "q_proj", "‖ΔW‖/‖W‖", "all"):
        assert word in out
    assert str(model_folder) in out
    assert "layers.1.mlp" not in out.split("changes most")[0]
    code, out, _ = command("inspect", str(adapter_folder), "--layers")
    assert code == 0
    assert "model.layers.1.mlp.down_proj" in out.split("changes most")[0]


def test_the_numbers_as_json(command, adapter_folder, model_folder):
    code, out, _ = command("inspect", str(adapter_folder), "--json")
    assert code == 0
    found = json.loads(out)["adapter"]
    tensors = load_file(adapter_folder / "adapter_model.safetensors")
    base = load_file(model_folder / "model.safetensors")
    assert found["num_parameters"] == sum(tensor.numel() for tensor in tensors.values())
    for layer in found["layers"]:
        stem = f"base_model.model.{layer['name']}"
        delta = 2.0 * tensors[f"{stem}.lora_B.weight"] @ tensors[f"{stem}.lora_A.weight"]
        weight = base[f"{layer['name']}.weight"].float()
        assert layer["frobenius_norm"] == pytest.approx(float(delta.norm()), rel=1e-5)
        relative = float(delta.norm() / weight.norm())
        assert layer["base"]["relative_norm"] == pytest.approx(relative, rel=1e-4)
    assert {line["kind"] for line in found["kinds"]} >= {"q_proj", "all"}


def test_a_run_is_its_adapter(command, adapter_folder, tmp_path):
    shutil.copytree(adapter_folder, tmp_path / "run" / "adapter")
    assert command("inspect", str(tmp_path / "run"))[0] == 0


def test_an_adapter_beside_itself(command, adapter_folder, changed):
    code, out, err = command("inspect", str(adapter_folder), str(changed()), "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["comparison"]["cosine"] == pytest.approx(1.0)
    assert found["comparison"]["mean_phi_delta"]["full"] == pytest.approx(1.0)
    assert found["comparison"]["mean_phi_a"]["random_full"] > 0
    assert found["other"]["layers"] == found["adapter"]["layers"]
    code, out, _ = command("inspect", str(adapter_folder), str(changed("again")))
    assert code == 0
    assert "random all" in out


def test_adapters_that_share_a_part(command, adapter_folder, changed):
    def only_q(tensors):
        return {name: tensor for name, tensor in tensors.items() if "q_proj" in name}

    other = changed(change=only_q, base_model_name_or_path="another/base")
    code, out, err = command("inspect", str(adapter_folder), str(other))
    assert code == 0
    assert "their bases differ" in out
    assert "only first" in out
    assert "not compared with its base" in err


def test_a_page_is_written_whole_over_an_old_one(command, adapter_folder, changed, tmp_path):
    page = tmp_path / "page.HTML"
    page.write_text("old")
    code, out, _ = command("inspect", str(adapter_folder), "--plot", str(page))
    assert code == 0
    assert str(page) in out
    assert "Spectrum of ΔW" in page.read_text(encoding="utf-8")
    again = str(changed("again"))
    code, out, _ = command("inspect", str(adapter_folder), again, "--plot", str(page), "--json")
    assert code == 0
    assert json.loads(out)["plot"] == str(page)
    assert "random directions" in page.read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_picture(command, adapter_folder, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    picture = tmp_path / "adapter.png"
    code, _, err = command("inspect", str(adapter_folder), "--plot", str(picture))
    assert code == 0, err
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("plot", "message"),
    [("x.svg", "picture or a page"), ("x", "no ending"), ("no/x.png", "no such folder")],
)
def test_plots_that_cannot_be(command, adapter_folder, tmp_path, plot, message):
    code, _, err = command("inspect", str(adapter_folder), "--plot", str(tmp_path / plot))
    assert code == 2
    assert message in err


def test_a_folder_in_the_place_of_the_plot(command, adapter_folder, tmp_path):
    (tmp_path / "x.html").mkdir()
    assert command("inspect", str(adapter_folder), "--plot", str(tmp_path / "x.html"))[0] == 2


def test_a_model_is_no_adapter(command, model_folder):
    for text in (str(model_folder), "smollm2-135m-instruct"):
        code, _, err = command("inspect", text)
        assert code == 2
        assert "this is a model; inspect reads adapters" in err


def test_what_is_no_adapter(command, adapter_folder, tmp_path):
    (tmp_path / "lines").mkdir()
    shutil.copytree(adapter_folder, tmp_path / "many" / "french")
    for text, message in (
        (tmp_path / "missing", "no such adapter folder"),
        (tmp_path / "lines", "adapter_config.json is missing"),
        (tmp_path / "many", "french"),
        (adapter_folder / "adapter_config.json", f"give {adapter_folder}"),
    ):
        code, _, err = command("inspect", str(text))
        assert code == 2
        assert message in err


def test_hostile_adapters(command, changed, adapter_folder, tmp_path):
    def nan(tensors):
        next(iter(tensors.values()))[0, 0] = float("nan")
        return tensors

    def half(tensors):
        return {name: tensor for name, tensor in tensors.items() if "lora_B" not in name}

    def narrow(tensors):
        return {n: t[:, :-1].clone() if "lora_B" in n else t for n, t in tensors.items()}

    cases = [
        (changed("nan", nan), "NaN"),
        (changed("half", half), "have no B"),
        (changed("narrow", narrow), "contradict"),
        (changed("rank", r=8), "another rank"),
        (changed("prefix", peft_type="PREFIX_TUNING"), "PREFIX_TUNING"),
        (changed("empty", lambda _: {"x": torch.ones(1)}), "holds no tensors"),
    ]
    pickled = tmp_path / "pickled"
    shutil.copytree(adapter_folder, pickled)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    cases.append((pickled, "pickle"))
    for folder, message in cases:
        code, _, err = command("inspect", str(folder))
        assert code == 2, err
        assert message in err
    cut = changed("cut")
    weights = cut / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code, out, _ = command("inspect", str(cut), "--json")
    assert code == 1
    assert json.loads(out)["error"]["type"] == "CorruptFileError"


def test_a_base_that_is_named(command, changed, model_folder, tmp_path):
    adapter = changed(base_model_name_or_path="nobody/has-this")
    code, out, err = command("inspect", str(adapter))
    assert code == 0
    assert "nothing is downloaded without --base" in err
    assert "‖ΔW‖/‖W‖" not in out
    code, out, _ = command("inspect", str(adapter), "--base", str(model_folder))
    assert code == 0
    assert "‖ΔW‖/‖W‖" in out
    assert command("inspect", str(adapter), "--base", str(tmp_path / "none"))[0] == 2


def test_a_base_that_is_another(command, adapter_folder, tmp_path):
    base = tmp_path / "other"
    base.mkdir()
    (base / "config.json").write_text("{}")
    save_file({"h.0.attn.c_attn.weight": torch.ones(3, 3)}, base / "model.safetensors")
    code, _, err = command("inspect", str(adapter_folder), "--base", str(base))
    assert code == 2
    assert "does not belong to this base" in err


def test_a_base_in_4_bits_is_said(command, adapter_folder, model_folder, tmp_path):
    base = tmp_path / "packed"
    shutil.copytree(model_folder, base)
    tensors = load_file(base / "model.safetensors")
    packed = {
        name: torch.zeros(8, 1, dtype=torch.uint8) if "proj" in name else tensor
        for name, tensor in tensors.items()
    }
    save_file(packed, base / "model.safetensors", metadata={"format": "pt"})
    code, out, err = command("inspect", str(adapter_folder), "--base", str(base))
    assert code == 0, err
    assert "stored as U8" in out


def test_a_base_that_is_damaged_stops_nothing_unless_named(command, changed, tmp_path):
    base = tmp_path / "damaged"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"\x10")
    adapter = changed(base_model_name_or_path=str(base))
    code, _, err = command("inspect", str(adapter))
    assert code == 0
    assert "not compared with its base" in err
    assert command("inspect", str(adapter), "--base", str(base))[0] == 1


def test_an_adapter_that_names_no_base(command, tmp_path):
    write_adapter(
        tmp_path / "a",
        {"peft_type": "LORA", "r": 2, "lora_alpha": 2},
        {
            "base_model.model.q.lora_A.weight": torch.ones(2, 4),
            "base_model.model.q.lora_B.weight": torch.ones(3, 2),
        },
    )
    code, out, err = command("inspect", str(tmp_path / "a"))
    assert code == 0
    assert "not named" in out
    assert err == ""
