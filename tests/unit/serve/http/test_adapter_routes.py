"""Adapters come, change their meaning and go while the server runs; nothing gets in sideways."""

import base64
import errno
import json
import tempfile

import pytest
import torch

from ince.errors import AdapterError
from ince.formats.adapter import adapter_digest, write_adapter
from ince.registry import Registry
from ince.serve.http import Caller, FolderDirectory
from ince.serve.http.registry_view import RegistryShelf, RegistryTenants, RegistryView

CHAT = "/v1/chat/completions"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}


def tensors(seed):
    torch.manual_seed(seed)
    return {
        "base_model.model.q_proj.lora_A.weight": torch.randn(2, 8),
        "base_model.model.q_proj.lora_B.weight": torch.randn(8, 2),
    }


@pytest.fixture
def adapters(tmp_path):
    folder = tmp_path / "adapters"
    for seed, name in enumerate(("one", "two", "team/three")):
        write_adapter(folder / name, CONFIG, tensors(seed))
    return folder


class Loader:
    """Loads everything but what it was told to refuse."""

    def __init__(self):
        self.bad, self.forgotten, self.loaded = set(), [], set()

    def prefetch(self, digest):
        self.loaded.add(digest)

    def state(self, digest):
        if digest in self.bad:
            return "failed"
        return "memory" if digest in self.loaded else "disk"

    def error(self, digest):
        return AdapterError("the adapter does not change what the base says")

    def forget(self, digest):
        self.forgotten.append(digest)
        self.loaded.discard(digest)


@pytest.fixture
def loader():
    return Loader()


@pytest.fixture
def server(serve, adapters, loader):
    directory = FolderDirectory(adapters)
    assert directory.scan() == ["one", "two"]
    return serve(directory=directory, shelf=directory, loader=loader, adapters_folder=adapters)


def load(server, name, path, **more):
    body = {"lora_name": name, "lora_path": path, **more}
    return server.http.post("/v1/load_lora_adapter", json=body)


def ask(server, name):
    asked = {"model": name, "messages": [{"role": "user", "content": "Say it"}]}
    return server.http.post(CHAT, json=asked)


def test_load_swap_roll_back_and_unload(server, engine, adapters, loader):
    assert load(server, "mine", "team/three").text == (
        "Success: LoRA adapter 'mine' added successfully."
    )
    assert ask(server, "mine").status_code == 200
    three, one = adapter_digest(adapters / "team" / "three"), adapter_digest(adapters / "one")
    assert engine.requests[-1].adapter == three
    again = load(server, "mine", "one")
    assert again.status_code == 400
    assert again.json()["error"]["code"] == "already_loaded"
    assert load(server, "mine", "one", load_inplace=True).status_code == 200
    ask(server, "mine")
    assert engine.requests[-1].adapter == one
    history = server.http.get("/v1/adapters/history?name=mine").json()["data"]
    assert [each["digest"] for each in history] == [one, three]
    back = server.http.post("/v1/adapters/rollback", json={"name": "mine"})
    assert back.json()["digest"] == three
    ask(server, "mine")
    assert engine.requests[-1].adapter == three
    aliased = server.http.post("/v1/adapters/alias", json={"name": "other", "digest": one})
    assert aliased.json()["name"] == "other"
    gone = server.http.post("/v1/unload_lora_adapter", json={"lora_name": "mine"})
    assert gone.status_code == 200
    assert loader.forgotten == [three]
    assert ask(server, "mine").status_code == 404
    twice = server.http.post("/v1/unload_lora_adapter", json={"lora_name": "mine"})
    assert twice.status_code == 404


def test_one_that_does_not_load_changes_nothing(server, engine, adapters, loader):
    one, two = adapter_digest(adapters / "one"), adapter_digest(adapters / "two")
    loader.bad.add(two)
    refused = load(server, "one", "two", load_inplace=True)
    assert refused.status_code == 400
    assert "does not change" in refused.json()["error"]["message"]
    ask(server, "one")
    assert engine.requests[-1].adapter == one


def test_nothing_outside_of_the_folder_is_loaded(server, adapters, tmp_path):
    outside = tmp_path / "outside"
    write_adapter(outside, CONFIG, tensors(9))
    (adapters / "link").symlink_to(outside)
    (adapters / "half").mkdir()
    (adapters / "half" / "adapter_config.json").write_text("{}")
    weights = "adapter_model.safetensors"
    (adapters / "half" / weights).symlink_to(outside / weights)
    answers = {
        path: load(server, "bad", path)
        for path in (
            "../outside",
            str(outside),
            "link",
            "half",
            "one/../../outside",
            "nowhere",
            ".",
            "",
            "/etc",
            "one\0",
            "../" * 500,
            "x" * 4096,
        )
    }
    assert {answer.status_code for answer in answers.values()} == {400}
    # What is there and what is not cannot be told apart.
    texts = {
        answers[path].json()["error"]["message"].replace(path, "PATH")
        for path in ("../outside", "link", "half", "nowhere")
    }
    assert len(texts) == 1
    assert ask(server, "bad").status_code == 404


def test_a_pickle_is_never_opened(server, adapters, tmp_path):
    folder = adapters / "pickled"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
    assert load(server, "bad", "pickled").status_code == 400
    weights = base64.b64encode(b"\x80\x04cos\nsystem\n.").decode()
    body = {"name": "bad", "config": CONFIG, "weights": weights}
    answer = server.http.post("/v1/adapters/upload", json=body)
    assert answer.status_code == 400
    assert "pickle" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["tiny", "../x", ".hidden", "a b", "a\nb", "x" * 200, "a\u202eb"])
def test_names_that_no_adapter_may_have(server, name):
    assert load(server, name, "one").status_code == 400


def uploaded(adapters, name):
    weights = (adapters / name / "adapter_model.safetensors").read_bytes()
    config = json.loads((adapters / name / "adapter_config.json").read_text())
    return {"name": "fresh", "config": config, "weights": base64.b64encode(weights).decode()}


def test_an_upload_is_there_at_once_and_next_time(server, engine, adapters):
    body = uploaded(adapters, "team/three")
    answer = server.http.post("/v1/adapters/upload", json=body)
    assert answer.status_code == 200, answer.text
    assert ask(server, "fresh").status_code == 200
    assert engine.requests[-1].adapter == answer.json()["digest"]
    assert "fresh" in FolderDirectory(adapters).scan()
    assert server.http.post("/v1/adapters/upload", json=body | {"weights": "?"}).status_code == 400
    cut = body | {"name": "cut", "weights": body["weights"][:200]}
    refused = server.http.post("/v1/adapters/upload", json=cut)
    assert refused.status_code == 400
    message = refused.json()["error"]["message"]
    assert "adapter_model.safetensors" in message
    assert tempfile.gettempdir() not in message
    assert ask(server, "cut").status_code == 404


def test_a_full_disk_is_said_and_nothing_is_left(server, engine, adapters, monkeypatch, tmp_path):
    body = uploaded(adapters, "team/three") | {"name": "one"}
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    answer = server.http.post("/v1/adapters/upload", json=body)
    assert answer.status_code == 507
    assert answer.json()["error"]["code"] == "disk_full"
    assert list((tmp_path / "temporary").iterdir()) == []
    monkeypatch.undo()
    assert ask(server, "one").status_code == 200
    assert engine.requests[-1].adapter == adapter_digest(adapters / "one")


def test_only_an_administrator_may_send_a_large_body(serve, fakes):
    tenants = fakes.Tenants(admin=Caller("boss", is_admin=True), key=Caller("acme"))
    http = serve(tenants=tenants, max_body_bytes=1_000).http
    body = {"name": "a", "config": {}, "weights": "A" * 4_000}

    def send(key):
        headers = {"authorization": f"Bearer {key}"}
        return http.post("/v1/adapters/upload", json=body, headers=headers).status_code

    assert send("key") == 413
    assert send("admin") == 400


def test_the_routes_over_a_registry(serve, engine, adapters, loader, tmp_path):
    with Registry(tmp_path / "registry", create=True) as registry:
        first = registry.put(adapters / "one", name="legal", tenant="")
        tenants = registry.tenants
        tenants.add_tenant("acme", allow=["legal"])
        tenants.add_tenant("boss", is_admin=True)
        acme, boss = tenants.add_key("acme"), tenants.add_key("boss")
        server = serve(
            directory=RegistryView(registry, "tiny"),
            tenants=RegistryTenants(registry),
            shelf=RegistryShelf(registry),
            loader=loader,
            adapters_folder=adapters,
        )

        def call(key, path, body=None):
            headers = {"authorization": f"Bearer {key}"}
            if body is None:
                return server.http.get(path, headers=headers)
            return server.http.post(path, json=body, headers=headers)

        def chat(key, name):
            asked = {"model": name, "messages": [{"role": "user", "content": "Say it"}]}
            return call(key, CHAT, asked)

        assert [each["id"] for each in call(acme, "/v1/models").json()["data"]] == ["legal"]
        assert chat(acme, "legal").status_code == 200
        assert chat(acme, "tiny").status_code == 404
        assert chat(boss, "tiny").status_code == 200
        # Another process moves the name; the next request has it.
        with Registry(tmp_path / "registry") as elsewhere:
            second = elsewhere.put(adapters / "two", name="legal")
        assert chat(acme, "legal").status_code == 200
        assert [request.adapter for request in engine.requests] == [first, None, second]
        rolled = call(boss, "/v1/adapters/rollback", {"name": "legal"})
        assert rolled.json()["digest"] == first
        own = {"lora_name": "own", "lora_path": "team/three", "tenant": "acme"}
        assert call(boss, "/v1/load_lora_adapter", own).status_code == 200
        assert call(acme, "/v1/load_lora_adapter", own).status_code == 403
        assert chat(acme, "own").status_code == 200
        assert chat(boss, "own").status_code == 404
        actors = [record.actor for record in registry.audit()]
        assert actors[-1] == "server: boss"
        tenants.revoke_key(acme)
        assert chat(acme, "legal").status_code == 401
    wait = server.service.limits.take_usage()
    assert {(each.tenant, each.adapter) for each in wait} <= {
        ("acme", first), ("acme", second), ("boss", ""), ("acme", rolled.json()["digest"]),
        ("acme", adapter_digest(adapters / "team" / "three")),
    }  # fmt: skip
