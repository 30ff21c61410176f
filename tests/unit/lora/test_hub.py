"""The hub: asked for two files and no more, and every refusal said in words."""

import errno
import shutil

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from transformers import LlamaConfig, LlamaForCausalLM

from ince.errors import AdapterError, DiskFullError, InputError
from ince.lora import LoraConfig, PeftConfig, PeftModel, get_peft_model
from ince.lora.hub import HubOptions, is_hub_id


@pytest.fixture
def llama():
    def make():
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
        config = LlamaConfig(vocab_size=32, intermediate_size=24, num_hidden_layers=1, **sizes)
        return LlamaForCausalLM(config).eval()

    return make


@pytest.fixture
def model(llama):
    """A model with the adapters "default" and "b"."""
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(llama(), config)
    model.add_adapter("b", LoraConfig(r=3, target_modules=["down_proj"]))
    return model


@pytest.fixture
def hub(model, tmp_path, monkeypatch):
    """A hub with one repository; what it was asked is in the list."""
    repository = tmp_path / "hub"
    model.save_pretrained(repository)
    (repository / "adapter_model.bin").write_bytes(b"pickle")
    asked = []

    def snapshot_download(repo_id, *, allow_patterns, **options):
        asked.append((repo_id, sorted(allow_patterns), options))
        cache = tmp_path / "cache"
        for name in allow_patterns:
            if (repository / name).is_file():
                (cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(repository / name, cache / name)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_only_the_two_files_are_asked_for(hub, llama, model):
    loaded = PeftModel.from_pretrained(llama(), "someone/adapter", revision="v1", token="t")
    ((repo, files, options),) = hub
    assert repo == "someone/adapter"
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    assert options["revision"] == "v1"
    assert options["token"] == "t"
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_a_subfolder_of_the_repository(hub, llama):
    loaded = PeftModel.from_pretrained(llama(), "someone/adapter", subfolder="b/")
    assert hub[0][1] == ["b/adapter_config.json", "b/adapter_model.safetensors"]
    assert loaded.peft_config["default"].r == 3


def test_of_a_config_only_its_file(hub):
    config = PeftConfig.from_pretrained("someone/adapter", revision="v1")
    assert type(config) is LoraConfig
    assert hub[0][:2] == ("someone/adapter", ["adapter_config.json"])
    assert PeftConfig.from_pretrained("someone/adapter", "b").r == 3
    with pytest.raises(InputError, match="did you mean 'revision'"):
        PeftConfig.from_pretrained("someone/adapter", revisoin="v1")


def test_a_folder_here_comes_first_and_needs_no_hub(hub, llama, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("someone/adapter")
    PeftModel.from_pretrained(llama(), "someone/adapter")
    loaded = PeftModel.from_pretrained(llama(), "someone/adapter", subfolder="b")
    assert hub == []
    assert "down_proj" in loaded.peft_config["default"].target_modules


def test_a_repository_of_pickles_is_refused(hub, llama, tmp_path):
    (tmp_path / "hub" / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"adapter_model.safetensors missing") as caught:
        PeftModel.from_pretrained(llama(), "someone/adapter")
    assert "pickle" in str(caught.value)


def made(kind):
    """An error of the hub, without the answer that its constructor wants."""
    return kind.__new__(kind, "x")


@pytest.mark.parametrize(
    ("make", "kind", "match"),
    [
        (lambda: made(errors.GatedRepoError), InputError, "its terms"),
        (lambda: made(errors.RevisionNotFoundError), InputError, "'v9'"),
        (lambda: made(errors.RepositoryNotFoundError), InputError, "no rep"),
        (lambda: made(errors.LocalEntryNotFoundError), InputError, "neither a folder here"),
        (lambda: made(errors.OfflineModeIsEnabled), InputError, "neither a folder here"),
        (lambda: made(errors.HfHubHTTPError), InputError, "neither"),
        (lambda: OSError(errno.ENOSPC, "full"), DiskFullError, "no space"),
    ],
)
def test_what_the_hub_refuses(llama, monkeypatch, make, kind, match):
    def refuse(*args, **kwargs):
        raise make()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(kind, match=match):
        PeftModel.from_pretrained(llama(), "someone/adapter", revision="v9")


def test_mistakes_of_a_program_are_not_the_hubs(llama, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda: None)
    with pytest.raises(TypeError):
        PeftModel.from_pretrained(llama(), "someone/adapter")


def test_offline_the_error_says_what_was_tried(llama):
    with pytest.raises(InputError, match="neither a folder here nor on the hub") as caught:
        PeftModel.from_pretrained(llama(), "someone/no-such-adapter")
    assert "needs no network" in str(caught.value)


@pytest.mark.parametrize("name", ["a/b", "gpt2-lora", "A-b_c.d/e.f"])
def test_what_can_be_on_the_hub(name):
    assert is_hub_id(name)


@pytest.mark.parametrize("name", ["", "/a", "a/", "a/b/c", "../b", "a/../b", "a b", "-a/b", "./a"])
def test_what_cannot(name):
    assert not is_hub_id(name)


def test_unknown_arguments_show_the_nearest(llama, model, tmp_path):
    with pytest.raises(InputError, match="no such argument: subfoldr") as caught:
        PeftModel.from_pretrained(llama(), tmp_path, subfoldr="x")
    assert "did you mean 'subfolder'" in str(caught.value)
    with pytest.raises(InputError, match="ignore_mismatched_sizes"):
        model.load_adapter(tmp_path, "x", ignore_mismatched_sizes=True)
    with pytest.raises(InputError, match="no such argument"):
        HubOptions.of({"resume": True})


def test_uploaded(model, monkeypatch, tmp_path):
    calls = {}

    class Api:
        def __init__(self, token):
            calls["token"] = token

        def create_repo(self, repo_id, **options):
            calls["repo"] = (repo_id, options)
            return type("Repo", (), {"repo_id": "me/" + repo_id})

        def upload_folder(self, *, repo_id, folder_path, **options):
            calls["files"] = sorted(str(p.relative_to(folder_path)) for p in folder_path.rglob("*"))
            calls["upload"] = (repo_id, options)
            return "https://hub/commit"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    commit = model.push_to_hub("new", private=True, token="t", selected_adapters=["default"])
    assert commit == "https://hub/commit"
    assert calls["repo"] == ("new", {"private": True, "exist_ok": True})
    assert calls["files"] == ["adapter_config.json", "adapter_model.safetensors"]
    assert calls["upload"][0] == "me/new"
    with pytest.raises(InputError, match="not the name of a repository"):
        model.push_to_hub("../x")


def test_an_upload_that_is_refused(model):
    with pytest.raises(InputError):
        model.push_to_hub("me/new")
