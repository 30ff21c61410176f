import json

import huggingface_hub
import pytest

from ince.cli.adapter_base import AdapterBase, base_here, named_base
from ince.errors import ModelReferenceError
from ince.models import resolve


def quiet(*_):
    """Progress that nobody sees."""


@pytest.fixture
def adapter(tmp_path):
    """A folder whose config names this base."""

    def make(reference, **more):
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        config = {"base_model_name_or_path": reference} | more
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture
def asked(monkeypatch):
    """What the hub's client was asked for; it has nothing."""
    seen = []

    def snapshot_download(reference, **options):
        seen.append((reference, options))
        raise huggingface_hub.errors.LocalEntryNotFoundError("not here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return seen


def test_a_folder_is_found_once(adapter, model_folder):
    known = {}
    found = base_here(adapter(str(model_folder)), known, quiet)
    assert isinstance(found, AdapterBase)
    assert found.weights.shape("model.layers.0.mlp.up_proj") == (48, 32)
    assert base_here(adapter(str(model_folder)), known, quiet) is found


def test_the_hub_is_not_asked(adapter, asked):
    found = base_here(adapter("nobody/nothing", revision="v1"), {}, quiet)
    assert "nothing is downloaded without --base" in found
    assert asked == [("nobody/nothing", {"revision": "v1", "local_files_only": True})]


def test_the_hubs_cache_is_looked_into(adapter, model_folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(model_folder))
    assert isinstance(base_here(adapter("some/model"), {}, quiet), AdapterBase)


def test_a_cache_without_weights_is_none(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    assert isinstance(base_here(adapter("some/model"), {}, quiet), str)


@pytest.mark.parametrize("reference", ["", None, 7, ["x"]])
def test_a_base_that_is_not_named(adapter, asked, reference):
    assert base_here(adapter(reference), {}, quiet) is None
    assert asked == []


@pytest.mark.parametrize(
    "reference", ["x" * 5000, "a\0b", "~nobody-of-this-name/x", "../../..", "/"]
)
def test_names_of_strangers_are_no_failure(adapter, reference):
    assert isinstance(base_here(adapter(reference), {}, quiet), str)


def test_a_base_of_other_weights_is_doubted(adapter, model_folder):
    folder = adapter(str(model_folder))
    base = named_base(str(model_folder), quiet)
    assert base.doubt(folder) is None
    digest = resolve(model_folder).weights_digest
    (folder / "ince.json").write_text(json.dumps({"base_digest": digest}))
    assert base.doubt(folder) is None
    (folder / "ince.json").write_text(json.dumps({"base_digest": "0" * 64}))
    assert "not those that the adapter was trained on" in base.doubt(folder)


def test_a_base_that_the_user_names_must_be_there(tmp_path):
    with pytest.raises(ModelReferenceError):
        named_base(str(tmp_path / "none"), quiet)
