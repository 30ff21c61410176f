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
        ({"corda_config": {"a": 1}}, "corda_config: {'a': 1} is not supported"),
        ({"bias": "some"}, "bias: "),
        ({"modules_to_save": "lm_head"}, "modules_to_save: "),
        ({"task_type": "DANCE"}, "task_type: "),
    ],
)
def test_a_config_with_a_mistake(folder, values, match):
    change_config(folder, **values)
    text = refused(folder, ConfigError, match)
    assert CONFIG in text or str(folder) in text


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"lora_bias": True}, "lora_B.bias"),
        ({"modules_to_save": ["lm_head"]}, "lm_head.weight"),
        ({"trainable_token_indices": [1, 2]}, "trainable_tokens_delta"),
        ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "k_proj.lora_A.weight"),
    ],
)
def test_a_config_that_promises_more_than_the_tensors(folder, values, name):
    change_config(folder, **values)
    text = refused(folder, AdapterError, "is missing")
    assert name in text


def test_a_rank_that_its_tensors_do_not_have(folder):
    change_config(folder, r=4)
    refused(folder, AdapterError, "8 of another shape")


def test_a_rank_beyond_memory_is_refused_before_it_is_allocated(folder):
    change_config(folder, r=10**30)
    refused(folder, AdapterError, "8 of another shape")


HOSTILE_NAMES = [
    *("../evil", "a/b", "..", ".", "/abs", "a.b", "", " ", "con\0", "a\n", "-x", "__base__"),
    *("ünï", "\u202eevil", "x" * 10_000, "keys", "training", "fromkeys", "forward", "get"),
    *(3, None, ("a",), b"a"),
]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=lambda name: repr(name)[:20])
def test_unusable_adapter_names_leave_the_model_and_write_nothing(folder, tmp_path, name):
    model = get_peft_model(base(), LoraConfig(init_lora_weights=False))
    before = model(IDS).logits
    keys = list(model.state_dict())
    kind = "not a usable adapter name"
    for operation in (
        lambda: model.add_adapter(name, LoraConfig()),
        lambda: model.load_adapter(folder, name),
        lambda: model.add_weighted_adapter(["default"], [1.0], name),
        lambda: model.reduce_rank("default", name, r=1),
        lambda: get_peft_model(base(), LoraConfig(), name),
        lambda: PeftModel.from_pretrained(base(), folder, name),
    ):
        with pytest.raises(AdapterError, match=kind) as caught:
            operation()
        assert len(str(caught.value)) < 500
    with pytest.raises(AdapterError, match="has no adapter"):
        model.save_pretrained(tmp_path / "x", selected_adapters=[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]
    assert list(model.peft_config) == ["default"]
    assert list(model.state_dict()) == keys
    assert torch.equal(model(IDS).logits, before)


def test_names_that_look_odd_and_are_usable(tmp_path):
    model = get_peft_model(base(), LoraConfig(), "1-a_B")
    for name in ("default", "lora_A", "weight", "base_layer", "x" * 128):
        model.add_adapter(name, LoraConfig(init_lora_weights=False))
        model.set_adapter(name)
        assert model(IDS).logits.isfinite().all()
    model.save_pretrained(tmp_path)
    for name in model.peft_config:
        path = tmp_path if name == "default" else tmp_path / name
        PeftModel.from_pretrained(base(), path)


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


# ----------------------------------------------------------------------------- many adapters


def test_a_refused_adapter_leaves_the_others(folder):
    model = PeftModel.from_pretrained(base(), folder)
    model.load_adapter(folder, "b")
    model.set_adapter(["default", "b"])
    before, keys = model(IDS).logits, list(model.state_dict())
    change_weights(folder, lambda tensors: tensors.pop(KEY))
    with pytest.raises(AdapterError, match="is missing"):
        model.load_adapter(folder, "c")
    change_config(folder, peft_type="IA3")
    with pytest.raises(AdapterError, match="not a"):
        model.load_adapter(folder, "c")
    with pytest.raises(AdapterError, match="already"):
        model.add_adapter("b", LoraConfig())
    with pytest.raises(ConfigError):
        model.add_adapter("c", LoraConfig(target_modules=["q_prjo"]))
    assert list(model.state_dict()) == keys
    assert model.active_adapters == ["default", "b"]
    assert torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize(
    "digest", ["[]", '{"base_digest": 3}', "not json", '{"base_digest": ["a"]}']
)
def test_a_garbled_note_about_the_base(folder, digest):
    (folder / "ince.json").write_text(digest)
    refused(folder, CorruptFileError, "ince.json")


def test_a_note_about_the_base_without_a_digest(folder):
    (folder / "ince.json").write_text("{}")
    PeftModel.from_pretrained(base(), folder)


@pytest.mark.parametrize("reference", ["no/such", "a b", "../../etc", "https://x/y", "nothing", ""])
def test_references_that_lead_nowhere(reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        PeftModel.from_pretrained(base(), reference)


@pytest.mark.parametrize("r", [0, -1, 1000, True, 2.5, "4"])
def test_ranks_that_cannot_be(r):
    model = base()
    with pytest.raises(ConfigError):
        get_peft_model(model, LoraConfig(r=r))
    assert not any(isinstance(module, LoraLayer) for module in model.modules())
