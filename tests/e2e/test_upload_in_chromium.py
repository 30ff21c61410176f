"""An administrator uploads adapters in a real browser, to a real engine over a registry."""

import json
import runpy
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from ince.lora import LoraConfig, get_peft_model
from ince.registry import Registry
from ince.serve.http import HttpSettings, create_app
from ince.serve.http.registry_view import RegistryShelf, RegistryTenants, RegistryView
from ince.serve.opening import opened

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

SERVED = Path(__file__).parents[1] / "unit" / "serve" / "http" / "conftest.py"
FILES = ("adapter_config.json", "adapter_model.safetensors")
MODELS = "[...document.querySelector('.model').options].map(option => option.value)"
SAID = "document.getElementById('upload-said')"
FOCUSED = "document.activeElement.id || document.activeElement.textContent.trim()"


def write_adapter(model, folder):
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def adapters(tiny_llama, tmp_path):
    """One for the base, one for another base, and one that is a pickle in disguise."""
    good = write_adapter(tiny_llama(), tmp_path / "good")
    write_adapter(tiny_llama(hidden_size=32), tmp_path / "foreign")
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / FILES[0]).write_bytes((good / FILES[0]).read_bytes())
    (tmp_path / "pickle" / FILES[1]).write_bytes(b"\x80\x04cos\nsystem\n.")
    (tmp_path / "prose").mkdir()
    (tmp_path / "prose" / FILES[0]).write_text("no JSON")
    (tmp_path / "prose" / FILES[1]).write_bytes((good / FILES[1]).read_bytes())
    return tmp_path


@contextmanager
def serving(registry, tiny_llama, tokenizer):
    """The base and the registry behind a socket, as `ince serve` puts them together."""
    running = runpy.run_path(str(SERVED))["running"]
    with ExitStack() as stack:
        found = stack.enter_context(
            opened(tiny_llama(), tokenizer, source=registry, num_slots=4, kv_bytes=1 << 20)
        )
        app = create_app(
            found.engine,
            tokenizer,
            RegistryView(registry, "tiny"),
            RegistryTenants(registry),
            HttpSettings(base_name="tiny", context_length=400),
            shelf=RegistryShelf(registry),
            loader=found.tiers,
        )
        yield stack.enter_context(running(app, found.engine))[0]


def enter(page, url, key):
    page.open(f"{url}/")
    page.until("!document.getElementById('key-form').hidden")
    page.run("document.getElementById('key').focus()")
    page.type(key)
    page.key("Enter")
    page.until("document.getElementById('key-form').hidden")


def upload(page, folder, name):
    """By the keyboard, but for the system's own dialogs of files; what the page says of it."""
    page.run("document.getElementById('upload-button').focus()")
    page.key("Enter")
    page.until("document.getElementById('upload').open")
    assert page.run(FOCUSED) == "upload-name"
    page.run("document.getElementById('upload-name').select()")
    page.type(name)
    for field, file in zip(("upload-config", "upload-weights"), FILES, strict=True):
        page.choose(field, folder / file)
    page.key("Enter")
    page.until(f"{SAID}.textContent && {SAID}.textContent !== 'uploading and checking'")
    return page.run(f"[{SAID}.textContent, {SAID}.classList.contains('wrong')]")


def test_an_adapter_is_uploaded_used_and_a_bad_one_is_explained(
    page, adapters, tiny_llama, small_tokenizer, tmp_path
):
    with Registry(tmp_path / "registry", create=True) as registry:
        registry.tenants.add_tenant("boss", is_admin=True)
        registry.tenants.add_tenant("acme", allow=["*"])
        keys = {name: registry.tenants.add_key(name) for name in ("boss", "acme")}
        with serving(registry, tiny_llama, small_tokenizer) as url:
            enter(page, url, keys["boss"])
            page.until(f"document.querySelector('.model') && {MODELS}.length === 1")
            assert page.run(MODELS) == ["tiny"]
            assert page.run("document.getElementById('compare').disabled")
            assert upload(page, adapters / "good", "legal") == ["legal can be used now", False]
            # Tab goes through the form, in the order in which it is read.
            order = []
            for _ in range(4):
                page.key("Tab")
                order.append(page.run(FOCUSED))
            assert order == ["upload-config", "upload-weights", "Upload", "upload-close"]
            for name in ("light", "dark"):
                page.look(dark=name == "dark")
                (tmp_path / f"uploaded-{name}.png").write_bytes(page.picture())
            page.key("Escape")
            page.until("!document.getElementById('upload').open")
            page.until(f"{MODELS}.length === 2")
            assert page.run(MODELS) == ["tiny", "legal"]

            # It answers beside its base, and otherwise.
            page.run("document.getElementById('max-tokens').value = 12")
            page.run("document.getElementById('compare').click()")
            page.run("document.getElementById('prompt').focus()")
            page.type("Merhaba!")
            page.key("Enter")
            page.until("[...document.querySelectorAll('.count')].every(part => part.textContent)")
            answers = (
                "[...document.querySelectorAll('.turns li:not(.asked)')].map(i => i.textContent)"
            )
            base, legal = page.run(answers)
            assert base != legal
            assert page.run("document.querySelectorAll('.model')[1].value") == "legal"

            # What is wrong is said, and changes nothing: the name means what it meant.
            before = registry.resolve("legal")
            for folder, words in {
                "pickle": "pickle",
                "foreign": "shape",
                "prose": "not JSON",
            }.items():
                said, is_wrong = upload(page, adapters / folder, "legal")
                assert is_wrong
                assert words in said, said
                for name in ("light", "dark"):
                    page.look(dark=name == "dark")
                    (tmp_path / f"{folder}-{name}.png").write_bytes(page.picture())
                page.key("Escape")
            assert registry.resolve("legal") == before
            assert [alias.name for alias in registry.names()] == ["legal"]

            # Whoever is no administrator is told so.
            page.run("sessionStorage.clear()")
            page.open("about:blank")
            enter(page, url, keys["acme"])
            page.until(f"document.querySelector('.model') && {MODELS}.length === 2")
            assert page.run(MODELS) == ["tiny", "legal"]
            said, is_wrong = upload(page, adapters / "good", "mine")
            assert is_wrong
            assert "not an administrator" in said
            assert [alias.name for alias in registry.names()] == ["legal"]
        errors = [json.dumps(each) for each in page.wrong]
        # Refusals are in the browser's log; nothing else is.
        assert all('"source": "network"' in each for each in errors), errors
