import errno
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import ince
from ince.cli import quantize
from ince.models import quantized_folder
from ince.models.packed_shards import spread
from ince.ops import BLOCKSIZES


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("INCE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def ids():
    return torch.tensor([[1, 5, 9, 2, 7, 3, 11, 200]])


@pytest.fixture
def wide_folder(tmp_path_factory, tiny_llama, small_tokenizer):
    """A model whose rows are as wide as bitsandbytes' kernels on a CPU want them."""
    folder = tmp_path_factory.mktemp("wide")
    tiny_llama(hidden_size=128, intermediate_size=256).save_pretrained(folder)
    small_tokenizer.save_pretrained(folder)
    return folder


def test_the_sizes_of_blocks_are_those_of_the_operators():
    assert tuple(map(int, quantize._BLOCKSIZES)) == tuple(BLOCKSIZES)


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def left_beside(out):
    """Everything but `out` in its folder that was not there before."""
    return [path.name for path in out.parent.iterdir() if path != out]


@torch.no_grad()
def logits(model, ids):
    return model(ids).logits


@pytest.mark.parametrize(
    "options, settings",
    [
        ((), {}),
        (("--scale-search", "--blocksize", "128"), {"scale_search": True, "blocksize": 128}),
        (
            ("--quant-type", "fp4", "--no-double-quant"),
            {"quant_type": "fp4", "double_quant": False},
        ),
        (
            ("--quantize-head", "--skip", "q_proj"),
            {"quantize_head": True, "skip_modules": ["q_proj"]},
        ),
        (("--compute-dtype", "float32"), {"compute_dtype": "float32"}),
    ],
    ids=["default", "searched", "fp4", "head", "float32"],
)
def test_the_folder_is_the_model_quantized_in_memory(
    command, model_folder, tmp_path, ids, options, settings
):
    out = tmp_path / "packed"
    before = snapshot(model_folder)
    code, stdout, err = command("quantize", str(model_folder), "--out", str(out), *options)
    assert code == 0, err
    assert snapshot(model_folder) == before
    assert left_beside(out) == []
    dtype = getattr(torch, settings.get("compute_dtype", "bfloat16"))
    expected, _ = ince.load_model(
        model_folder, quantization=ince.NF4Config(**settings), dtype=dtype
    )
    found, tokenizer = ince.load_model(out, dtype=dtype)
    assert torch.equal(logits(found, ids), logits(expected, ids))
    assert tokenizer.chat_template
    assert str(out) in stdout
    assert "q_proj" in stdout or "q_proj" in options


def test_transformers_and_bitsandbytes_load_the_folder(command, wide_folder, tmp_path, ids):
    from transformers import AutoModelForCausalLM

    out = tmp_path / "packed"
    code, _, err = command(
        "quantize", str(wide_folder), "--out", str(out), "--compute-dtype", "float32"
    )
    assert code == 0, err
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    layer = theirs.model.layers[0].mlp.up_proj
    assert type(layer).__module__.startswith("bitsandbytes.")
    ours, _ = ince.load_model(out, dtype=torch.float32)
    assert torch.equal(
        layer.weight.data.flatten(), ours.model.layers[0].mlp.up_proj.packed.flatten()
    )
    # Its kernels for evaluation on a CPU round to bfloat16; those for training do not.
    theirs.train()
    assert torch.allclose(logits(theirs, ids), logits(ours, ids), atol=1e-4)


def test_json(command, model_folder, tmp_path):
    out = tmp_path / "packed"
    code, stdout, _ = command("quantize", str(model_folder), "--out", str(out), "--json")
    assert code == 0
    found = json.loads(stdout)
    assert found.keys() == {
        "model",
        "source",
        "format",
        "quantization",
        "source_bytes",
        "seconds",
        "weights",
    }
    assert found["model"] == str(out)
    assert found["quantization"]["quant_type"] == "nf4"
    assert found["source_bytes"] == sum(
        tensor.numel() * 2 for tensor in ince.load_model(model_folder)[0].parameters()
    )
    weights = found["weights"]
    assert weights["file_bytes"] == sum(each.stat().st_size for each in out.glob("*.safetensors"))
    assert {kind["name"] for kind in weights["kinds"]} == {
        f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")
    }
    assert all(0.05 < kind["relative_error"] < 0.15 for kind in weights["kinds"])
    assert "lm_head.weight" in weights["kept"]
    assert weights["bits_per_weight"] > weights["bits_per_packed_weight"] > 4


def test_searched_scales_err_less(command, model_folder, tmp_path):
    errors = []
    for number, options in enumerate(((), ("--scale-search",))):
        out = tmp_path / str(number)
        stdout = command("quantize", str(model_folder), "--out", str(out), "--json", *options)[1]
        kinds = json.loads(stdout)["weights"]["kinds"]
        errors.append([kind["relative_error"] for kind in kinds])
    assert all(searched < plain for plain, searched in zip(*errors, strict=True))


def test_a_gguf_file(command, write_gguf, tmp_path, ids):
    source, out = write_gguf(tmp_path / "model.gguf"), tmp_path / "packed"
    code, stdout, err = command("quantize", str(source), "--out", str(out))
    assert code == 0, err
    assert f"ince chat {out}" in stdout
    expected, _ = ince.load_model(source, quantization=ince.NF4Config())
    assert torch.equal(logits(ince.load_model(out)[0], ids), logits(expected, ids))


def test_fused_experts_are_packed_and_said(command, tmp_path, small_tokenizer):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(small_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
    )
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "moe")
    small_tokenizer.save_pretrained(tmp_path / "moe")
    arguments = ("quantize", str(tmp_path / "moe"), "--out")
    code, out, err = command(*arguments, str(tmp_path / "all"))
    assert code == 0, err
    assert "fused experts are packed (gate_up_proj, down_proj)" in out
    code, out, _ = command(*arguments, str(tmp_path / "some"), "--skip", "experts", "--json")
    kinds = json.loads(out)["weights"]["kinds"]
    assert [kind["name"] for kind in kinds] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert not any(kind["is_stack"] for kind in kinds)


def test_the_next_command_works(command, model_folder, tmp_path):
    out = tmp_path / "packed"
    assert command("quantize", str(model_folder), "--out", str(out))[0] == 0
    assert command("chat", str(out), "--prompt", "Hi", "--max-new-tokens", "2")[0] == 0


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--quant-type", "int4"), "no INT4 format"),
        (("--quant-type", "nf5"), "'nf5'"),
        (("--blocksize", "48"), "'48'"),
        (("--compute-dtype", "int8"), "'int8'"),
        (("--format", "gguf"), "'gguf'"),
        (("--skip", "q_porj"), "did you mean 'q_proj'?"),
        (("--skip", ""), "empty name"),
        (("--revision", "main"), "revision"),
    ],
)
def test_what_cannot_be_asked_for(command, model_folder, tmp_path, arguments, words):
    out = tmp_path / "packed"
    code, stdout, err = command("quantize", str(model_folder), "--out", str(out), *arguments)
    assert (code, stdout) == (2, "")
    assert words in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "reference", ["", "no/such/model/here", "./tiny", "a\0b", "smolm2-135m-instruct"]
)
def test_no_such_model(command, tmp_path, reference):
    code, _, err = command("quantize", reference, "--out", str(tmp_path / "packed"))
    assert code == 2
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_is_not_a_model(command, adapter_folder, tmp_path):
    code, _, err = command("quantize", str(adapter_folder), "--out", str(tmp_path / "packed"))
    assert code == 2
    assert "this is an adapter" in err
    assert f"ince merge {adapter_folder}" in err


def test_a_run_is_not_a_model(command, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    code, _, err = command("quantize", str(tmp_path / "run"), "--out", str(tmp_path / "packed"))
    assert code == 2
    assert "this is a run" in err


def test_a_model_that_is_quantized_already(command, model_folder, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert command("quantize", str(model_folder), "--out", str(first))[0] == 0
    code, _, err = command("quantize", str(first), "--out", str(second))
    assert code == 2
    assert "quantized already" in err
    assert "bitsandbytes" in err
    assert not second.exists()


@pytest.mark.parametrize("kind", ["folder", "file", "inside a file"])
def test_what_is_in_the_way_stays(command, model_folder, tmp_path, kind):
    out = kept = tmp_path / "taken"
    if kind == "folder":
        out.mkdir()
        kept = out / "mine.txt"
    kept.write_text("mine")
    target = out / "packed" if kind == "inside a file" else out
    code, _, err = command("quantize", str(model_folder), "--out", str(target))
    assert code == 2
    assert str(out) in err
    assert kept.read_text() == "mine"
    assert left_beside(out) == []


@pytest.mark.parametrize("place", [".", "packed", "a/b", "../tiny/packed"])
def test_not_into_the_model_itself(command, model_folder, place):
    before = snapshot(model_folder)
    code, _, err = command("quantize", str(model_folder), "--out", str(model_folder / place))
    assert code == 2
    assert "Traceback" not in err
    assert snapshot(model_folder) == before
    assert not (model_folder / "packed").exists()


def test_a_folder_that_may_not_be_written_to(command, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # for root every folder is writable
    code, _, err = command("quantize", str(model_folder), "--out", str(tmp_path / "packed"))
    assert code == 2
    assert "permission denied" in err


def stop(*_arguments, **_options):
    raise KeyboardInterrupt


def test_ctrl_c_leaves_nothing_half_written(command, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("ince.models.quantized_folder.write_packed", stop)
    code, _, err = command("quantize", str(model_folder), "--out", str(tmp_path / "packed"))
    assert code == 130
    assert "stopped" in err
    assert list(tmp_path.iterdir()) == []


def test_the_same_command_goes_on_where_it_was_stopped(
    command, model_folder, tmp_path, monkeypatch
):
    out = tmp_path / "packed"
    write, written = quantized_folder.write_safetensors, []

    def write_two(path, *arguments):
        if len(written) == 2:
            stop()
        written.append(path)
        write(path, *arguments)

    monkeypatch.setattr(quantized_folder, "spread", lambda stored, _: spread(stored, 20_000))
    monkeypatch.setattr(quantized_folder, "write_safetensors", write_two)
    code, _, err = command("quantize", str(model_folder), "--out", str(out))
    assert code == 130
    assert "goes on after the files in" in err
    (kept,) = left_beside(out)
    assert str(tmp_path / kept) in " ".join(err.split())
    assert len([*(tmp_path / kept).glob("*.safetensors")]) == 2
    monkeypatch.setattr(quantized_folder, "write_safetensors", write)
    assert command("quantize", str(model_folder), "--out", str(out))[0] == 0
    assert left_beside(out) == []
    assert (out / "model.safetensors.index.json").is_file()
    whole = tmp_path / "whole"
    assert command("quantize", str(model_folder), "--out", str(whole))[0] == 0
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == {
        p.name: p.read_bytes() for p in out.iterdir()
    }


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    command, model_folder, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr("ince.models.packed_manifest.shutil.disk_usage", lambda _: usage)
    code, _, err = command("quantize", str(model_folder), "--out", str(tmp_path / "packed"))
    assert code == 1
    assert "1.00 MiB free" in err
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills(command, model_folder, tmp_path, monkeypatch):
    def full(_handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = command("quantize", str(model_folder), "--out", str(tmp_path / "packed"))
    assert code == 1
    assert "no space left" in err
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_not_finite_is_named(command, model_folder, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(model_folder, damaged)
    tensors = load_file(damaged / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
    code, _, err = command("quantize", str(damaged), "--out", str(tmp_path / "packed"))
    assert code == 2
    assert "model.layers.1.mlp.up_proj.weight" in err
    assert left_beside(damaged) == []
