"""What is not an adapter of this base, whole and as published, is refused by name."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ince.errors import AdapterError, ConfigError, CorruptFileError, InceError, ProofError
from ince.formats.adapter import CONFIG_FILE, WEIGHTS_FILE, adapter_digest
from ince.lora import LoraConfig, get_peft_model
from ince.lora.base_identity import note_origin
from ince.serve.adapters import AdapterTiers, Folders, ServedModel, load_adapter, serve_layers


@pytest.fixture(scope="module")
def served(small_llama) -> ServedModel:
    return serve_layers(small_llama())


@pytest.fixture(scope="module")
def good(served, small_llama, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "adapter"
    adapted = get_peft_model(small_llama(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    adapted.save_pretrained(folder)
    load_adapter(served, folder)
    return folder


@pytest.fixture
def bad(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "adapter"))


def change_config(folder: Path, **changes: object) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file(change(tensors) or tensors, folder / WEIGHTS_FILE)


def with_nan(tensors) -> None:
    next(iter(tensors.values()))[0, 0] = torch.nan


def without_one(tensors) -> None:
    tensors.pop(next(iter(tensors)))


def with_another(tensors) -> None:
    name = "base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight"
    tensors[name] = torch.ones(4, 64)


def with_zero(tensors):
    return {n: torch.zeros_like(t) if "lora_B" in n else t for n, t in tensors.items()}


def with_another_prefix(tensors):
    return {name.replace("base_model.model.", "model."): t for name, t in tensors.items()}


HOSTILE = {
    "a_nan": (AdapterError, lambda f: change_tensors(f, with_nan)),
    "a_missing_tensor": (AdapterError, lambda f: change_tensors(f, without_one)),
    "an_unread_tensor": (AdapterError, lambda f: change_tensors(f, with_another)),
    "another_prefix": (InceError, lambda f: change_tensors(f, with_another_prefix)),
    "nothing_learned": (ProofError, lambda f: change_tensors(f, with_zero)),
    "another_rank": (AdapterError, lambda f: change_config(f, r=8)),
    "another_rank_in_a_pattern": (
        AdapterError,
        lambda f: change_config(f, rank_pattern={"v_proj": 2}),
    ),
    "dora_without_its_tensors": (AdapterError, lambda f: change_config(f, use_dora=True)),
    "a_bias_without_its_tensors": (AdapterError, lambda f: change_config(f, lora_bias=True)),
    "an_unknown_option": (ConfigError, lambda f: change_config(f, warp_factor=9)),
    "an_option_not_built": (ConfigError, lambda f: change_config(f, alora_invocation_tokens=[1])),
    "a_mistyped_option": (ConfigError, lambda f: change_config(f, lora_alpha="16")),
    "another_method": (AdapterError, lambda f: change_config(f, peft_type="IA3")),
    "targets_that_are_not_there": (InceError, lambda f: change_config(f, target_modules=["qqq"])),
    "whole_modules": (InceError, lambda f: change_config(f, modules_to_save=["lm_head"])),
    "more_layers": (InceError, lambda f: change_config(f, layer_replication=[[0, 2], [0, 2]])),
    "a_start": (InceError, lambda f: change_config(f, init_lora_weights="pissa")),
    "a_pattern_for_ever": (AdapterError, lambda f: change_config(f, target_modules="(.+)+q")),
    "no_json": (CorruptFileError, lambda f: (f / CONFIG_FILE).write_bytes(b"\xff{")),
    "deep_json": (CorruptFileError, lambda f: (f / CONFIG_FILE).write_text("[" * 100_000)),
    "a_cut_off_file": (CorruptFileError, lambda f: os.truncate(f / WEIGHTS_FILE, 500)),
    "a_pickle": (
        AdapterError,
        lambda f: (f / WEIGHTS_FILE).write_bytes(b"PK\x03\x04" + b"\0" * 90),
    ),
    "a_pickle_alone": (
        AdapterError,
        lambda f: (f / WEIGHTS_FILE).rename(f / "adapter_model.bin"),
    ),
    "no_weights": (AdapterError, lambda f: (f / WEIGHTS_FILE).unlink()),
    "no_folder": (InceError, shutil.rmtree),
    "a_pipe": (
        AdapterError,
        lambda f: ((f / CONFIG_FILE).unlink(), os.mkfifo(f / CONFIG_FILE)),
    ),
    "a_loop_of_links": (
        InceError,
        lambda f: ((f / CONFIG_FILE).unlink(), (f / CONFIG_FILE).symlink_to(CONFIG_FILE)),
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_it_is_refused_and_others_are_not_disturbed(served, good, bad, kind):
    error, spoil = HOSTILE[kind]
    spoil(bad)
    with pytest.raises(error):
        load_adapter(served, bad)
    assert load_adapter(served, good).rank == 4


def test_files_outside_of_the_folder_are_not_followed(served, good, bad):
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (bad / name).unlink()
        (bad / name).symlink_to(good / name)
        with pytest.raises(AdapterError, match="must lie in its folder"):
            load_adapter(served, bad)
        (bad / name).unlink()
        shutil.copy(good / name, bad / name)
    link = bad.parent / "link"
    link.symlink_to(bad)
    assert load_adapter(served, link).rank == 4  # the folder itself may be found by a link


def test_a_file_that_was_altered_is_not_the_one_of_its_digest(served, bad):
    digest = adapter_digest(bad)
    assert load_adapter(served, bad, digest=digest).digest == digest
    change_tensors(bad, lambda tensors: {name: 2 * t for name, t in tensors.items()})
    with pytest.raises(CorruptFileError, match="published"):
        load_adapter(served, bad, digest=digest)


def test_an_adapter_of_another_base_is_refused(served, bad):
    class Origin:
        weights_digest = "1" * 64

    note_origin(served.model, Origin())
    try:
        (bad / "ince.json").write_text(json.dumps({"base_digest": "2" * 64}))
        with pytest.raises(AdapterError, match="another base"):
            load_adapter(served, bad)
        (bad / "ince.json").write_text(json.dumps({"base_digest": "1" * 64}))
        assert load_adapter(served, bad).rank == 4
    finally:
        del served.model._ince_origin


def test_a_scale_that_overflows_is_refused(served, bad):
    change_config(bad, lora_alpha=1e38)
    change_tensors(bad, lambda tensors: {name: 1e3 * t for name, t in tensors.items()})
    with pytest.raises(InceError):
        load_adapter(served, bad)


def test_a_wrong_packed_form_does_not_pass_the_canary(served, good, monkeypatch):
    from ince.serve.adapters import pack as module

    whole = module._terms

    def at_half_the_scale(*arguments):
        a, b, turn, shift = whole(*arguments)
        return a, b / 2, turn, shift

    monkeypatch.setattr(module, "_terms", at_half_the_scale)
    with pytest.raises(ProofError, match="not what its merged weights are"):
        load_adapter(served, good)


def test_files_removed_or_altered_while_in_use_change_nothing(served, bad):
    digest = adapter_digest(bad)
    tiers = AdapterTiers(served, Folders({digest: bad}), num_slots=1, memory_bytes=1 << 20)
    import threading

    ended = threading.Semaphore(0)
    tiers.listen(ended.release)
    tiers.prefetch(digest)
    assert ended.acquire(timeout=30)
    held = tiers.acquire(digest)
    assert held is not None
    before = held.block.clone()
    with (bad / WEIGHTS_FILE).open("r+b") as stream:
        stream.seek(2000)
        stream.write(b"\xff" * 500)
    shutil.rmtree(bad)
    assert torch.equal(held.block, before)
    tiers.release(digest)
    tiers.forget(digest)
    tiers.prefetch(digest)
    assert ended.acquire(timeout=30)
    assert tiers.state(digest) == "failed"
    assert "no such adapter folder" in str(tiers.error(digest))
    tiers.prefetch("0" * 64)
    assert ended.acquire(timeout=30)
    assert "no adapter of this digest" in str(tiers.error("0" * 64))
    tiers.close()
