"""Adapters that are broken, foreign or hostile: one clear error, and the model as it was."""

import contextlib
import json
import pickle
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from ince.errors import AdapterError, ConfigError, CorruptFileError, InceError, InputError
from ince.formats.adapter import read_adapter, write_adapter
from ince.lora import LoraConfig, LoraLayer, PeftModel, get_peft_model

IDS = torch.tensor([[1, 5, 9]])
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def base(**values):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1} | values
    config = LlamaConfig(vocab_size=32, intermediate_size=24, num_hidden_layers=2, **sizes)
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def folder(tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(base(), config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def refused(folder, kind, match, model=None):
    """Loading fails as `kind` with `match` in its text, and the model is as it was."""
    model = base() if model is None else model
    before = model(IDS).logits
    with pytest.raises(kind) as caught:
        PeftModel.from_pretrained(model, folder)
    text = str(caught.value)
    assert match in text
    assert not any(isinstance(module, LoraLayer) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model(IDS).logits, before)
    return text


def change_config(folder, **values):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_weights(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


# ------------------------------------------------------------------------------ files


@pytest.mark.parametrize("num_bytes", [0, 4, 8, 100, 1000, -1])
def test_weights_cut_off(folder, num_bytes):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:num_bytes])
    refused(folder, CorruptFileError, "cannot be read")


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 10**9) + b"{}",
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 70)
        + b'{"a":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4]}}'.ljust(70),
        b"<html>not found</html>",
    ],
)
def test_weights_that_are_no_safetensors(folder, data):
    (folder / WEIGHTS).write_bytes(data)
    refused(folder, CorruptFileError, "cannot be read")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


def test_pickles_are_never_opened(folder):
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused(folder, AdapterError, "pickle")


@pytest.mark.parametrize("make", ["pickle", "torch"])
def test_pickles_under_another_name_are_never_opened(folder, make):
    if make == "pickle":
        (folder / WEIGHTS).write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save({"a": torch.zeros(2)}, folder / WEIGHTS)
    refused(folder, AdapterError, "pickle")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_half_an_adapter(folder, name):
    (folder / name).unlink()
    refused(folder, AdapterError, f"{name} missing")


def test_no_folder_and_a_file_instead_of_one(folder):
    refused(folder / "no", InputError, "no such adapter folder")
    refused(folder / CONFIG, InputError, "no such adapter folder")


def test_a_folder_instead_of_a_file(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    refused(folder, AdapterError, f"{WEIGHTS} missing")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"a": 1', "\ud800".encode("utf-8", "replace")]
)
def test_a_config_that_is_no_json_object(folder, text):
    data = text if isinstance(text, bytes) else text.encode()
    (folder / CONFIG).write_bytes(data)
    refused(folder, CorruptFileError, CONFIG)


def test_a_config_in_another_encoding(folder):
    (folder / CONFIG).write_bytes('{"a": "ü"}'.encode("latin-1"))
    refused(folder, CorruptFileError, CONFIG)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_flipped_byte_is_read_or_refused_in_words(folder, data):
    name = data.draw(st.sampled_from([CONFIG, WEIGHTS]))
    original = (folder / name).read_bytes()
    place = data.draw(st.integers(0, min(len(original), 1500) - 1))
    value = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(original[:place] + bytes([value]) + original[place + 1 :])
    with contextlib.suppress(InceError):
        PeftModel.from_pretrained(base(), folder)
    (folder / name).write_bytes(original)


# ---------------------------------------------------------------------------- tensors


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite(folder, value):
    change_weights(folder, lambda tensors: tensors[KEY].view(-1)[3:4].fill_(value))
    text = refused(folder, AdapterError, "NaN or infinite")
    assert KEY in text


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    with pytest.raises(AdapterError, match="NaN or infinite"):
        write_adapter(tmp_path / "x", {}, {"a": torch.tensor([torch.nan])})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tensor(folder):
    change_weights(folder, lambda tensors: tensors.pop(KEY))
    assert f"{KEY}: is missing" in refused(folder, AdapterError, "does not fit")


def test_a_surplus_tensor(folder):
    change_weights(folder, lambda tensors: tensors.update(extra=torch.zeros(1)))
    assert "extra: has no place" in refused(folder, AdapterError, "1 surplus")


def test_a_misspelled_tensor_is_both(folder):
    change_weights(folder, lambda tensors: tensors.update({KEY + "s": tensors.pop(KEY)}))
    text = refused(folder, AdapterError, "1 missing, 1 surplus")
    assert f"did you mean '{KEY}s'" in text


@pytest.mark.parametrize("shape", [(3, 16), (16, 2), (2, 16, 1), (32,), (), (0, 16)])
def test_a_misshaped_tensor(folder, shape):
    change_weights(folder, lambda tensors: tensors.update({KEY: torch.zeros(shape)}))
    assert f"{shape}, the model's (2, 16)" in refused(folder, AdapterError, "1 of another shape")


def test_a_tensor_of_integers(folder):
    change_weights(
        folder, lambda tensors: tensors.update({KEY: torch.zeros(2, 16, dtype=torch.int64)})
    )
    refused(folder, AdapterError, "must be floating-point")


def test_an_empty_adapter(folder):
    save_file({}, folder / WEIGHTS)
    text = refused(folder, AdapterError, "does not fit")
    assert "0 tensors: 8 missing" in text
    assert text.count("\n") < 20


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "base_model.model.../x.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "",
        "a\nb\x1b[31m",
        "x" * 100_000,
    ],
)
def test_names_with_tricks_are_only_names(folder, name):
    change_weights(folder, lambda tensors: tensors.update({name: torch.zeros(1)}))
    text = refused(folder, AdapterError, "1 surplus")
    assert len(text) < 2000
    assert "\x1b" not in text
    assert sorted(path.name for path in folder.parent.iterdir()) == ["adapter"]


def test_an_adapter_of_another_size(folder):
    refused(folder, AdapterError, "of another shape", base(hidden_size=32))


def test_an_adapter_of_a_model_with_other_layers(folder):
    change_config(folder, target_modules=["c_attn"])
    refused(folder, ConfigError, "touches no module")


def test_another_precision_is_fine(folder):
    wanted = PeftModel.from_pretrained(base(), folder)

    def halve(tensors):
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    change_weights(folder, halve)
    model = PeftModel.from_pretrained(base(), folder)
    assert {p.dtype for n, p in model.named_parameters() if "lora" in n} == {torch.float32}
    torch.testing.assert_close(model(IDS).logits, wanted(IDS).logits, rtol=0.1, atol=0.01)


# ----------------------------------------------------------------------------- configs


@pytest.mark.parametrize("method", ["IA3", "LOHA", "PROMPT_TUNING", "lora", None, ["LORA"]])
def test_another_method(folder, method):
    change_config(folder, peft_type=method)
    refused(folder, AdapterError, "not a LoRA adapter")


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"r": 0}, "r: input should be greater than or equal to 1"),
        ({"r": -4}, "r: "),
        ({"r": "many"}, "r: "),
        ({"lora_alpha": 0}, "lora_alpha: "),
        ({"lora_dropout": 2}, "lora_dropout: "),
        ({"target_modules": ["q_proj", 3]}, "target_modules: "),
        ({"target_modules": {"q_proj": 1}}, "target_modules: "),
        ({"target_modules": "("}, "target_modules: "),
        ({"rank_pattern": {"(": 2}}, "rank_pattern: "),
        ({"rank_pattern": [1]}, "rank_pattern: "),
        ({"lora_alhpa": 3}, "lora_alhpa: no such option (did you mean 'lora_alpha'?)"),
        ({"use_dora": True}, "use_dora: True is not supported"),
        ({"bias": "all"}, "bias: 'all' is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: "),
        ({"task_type": "DANCE"}, "task_type: "),
    ],
)
def test_a_config_with_a_mistake(folder, values, match):
    change_config(folder, **values)
    text = refused(folder, ConfigError, match)
    assert CONFIG in text or str(folder) in text


def test_a_rank_that_its_tensors_do_not_have(folder):
    change_config(folder, r=4)
    refused(folder, AdapterError, "8 of another shape")


def test_a_rank_beyond_memory_is_refused_before_it_is_allocated(folder):
    change_config(folder, r=10**30)
    refused(folder, AdapterError, "8 of another shape")


@pytest.mark.parametrize("name", ["../evil", "a/b", "..", "/abs", "a.b", "", "con\0"])
def test_adapter_names_that_are_paths_write_nothing(tmp_path, name):
    model = get_peft_model(base(), LoraConfig())
    with pytest.raises(AdapterError, match="not a usable adapter name"):
        model.add_adapter(name, LoraConfig())
    with pytest.raises(AdapterError, match="has no adapter"):
        model.save_pretrained(tmp_path / "x", selected_adapters=[name])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../q_proj", "/q_proj", "..", "q_proj/", "q_prjo", "self_attn.q"])
def test_unknown_target_modules_show_the_nearest(name):
    with pytest.raises(ConfigError) as caught:
        get_peft_model(base(), LoraConfig(target_modules=[name]))
    text = str(caught.value)
    assert f"{name!r} matches no module" in text
    assert "q_proj" in text


def test_a_pattern_that_touches_no_module():
    with pytest.raises(ConfigError, match="touches no module"):
        get_peft_model(base(), LoraConfig(target_modules=r"transformer\.h\..*"))


def test_reading_again_after_refusals_works(folder):
    model = base()
    refused(folder.parent, AdapterError, "not an adapter", model)
    loaded = PeftModel.from_pretrained(model, folder)
    assert loaded(IDS).logits.isfinite().all()
    assert read_adapter(folder)[0]["r"] == 2
