"""The packaged model: found in its package, and the same model after conversion."""

import importlib.metadata
from pathlib import Path

import pytest
import torch

from ince.models import PACKAGED_MODELS, load_model, resolve
from ince.models.packaged import package_file, packaged_for_hub

MODEL = PACKAGED_MODELS["smollm2-135m-instruct"]


def test_file_is_found_in_the_package() -> None:
    file = package_file(MODEL)
    assert file is not None
    assert file.read_bytes()[:4] == b"GGUF"


def test_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert package_file(MODEL) is None


def test_package_whose_file_was_deleted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Emptied:
        @property
        def files(self) -> list[importlib.metadata.PackagePath]:
            path = importlib.metadata.PackagePath("gone.gguf")
            path.dist = self
            return [path]

        def locate_file(self, path: importlib.metadata.PackagePath) -> Path:
            return tmp_path / path

    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Emptied())
    assert package_file(MODEL) is None


def test_hub_id_names_the_packaged_model() -> None:
    assert packaged_for_hub("huggingfacetb/smollm2-135m-instruct") is MODEL
    assert packaged_for_hub("owner/other") is None


def test_converted_model_speaks(smollm2_folder: Path) -> None:
    resolved = resolve(MODEL.name)
    assert resolved.folder == smollm2_folder
    assert len(resolved.digest) == 64
    model, tokenizer = load_model(resolved, device="cpu")
    ids = tokenizer("The capital of France is the city of", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        token = model(input_ids=ids).logits[0, -1].argmax()
    assert tokenizer.decode(token) == " Paris"


@pytest.mark.long
def test_conversion_keeps_every_logit(smollm2_folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    file = package_file(MODEL)
    assert file is not None
    theirs = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.bfloat16
    ).eval()
    ours, _ = load_model(smollm2_folder, dtype=torch.bfloat16, device="cpu")
    ids = torch.randint(0, 49_152, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)
