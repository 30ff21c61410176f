"""What an administrator changes in the registry holds for a running server, at once."""

import pytest

from ince.formats.adapter import write_adapter
from ince.registry import Registry
from ince.serve.http.registry_view import RegistryTenants, RegistryView

CHAT = "/v1/chat/completions"


@pytest.fixture
def registry(tmp_path, shared_adapter):
    with Registry(tmp_path / "registry", create=True) as registry:
        registry.put(shared_adapter, name="legal")
        yield registry


@pytest.fixture
def shared_adapter(tmp_path):
    import torch

    tensors = {
        "base_model.model.q_proj.lora_A.weight": torch.ones(2, 8),
        "base_model.model.q_proj.lora_B.weight": torch.ones(8, 2),
    }
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    write_adapter(tmp_path / "adapter", config, tensors)
    return tmp_path / "adapter"


@pytest.fixture
def ask(serve, registry):
    """A function that starts the server when first called, and gives the status of a chat."""
    started = []

    def chat(key=None, model="legal", *, wants_keys=True):
        if not started:
            started.append(
                serve(
                    directory=RegistryView(registry, "tiny"),
                    tenants=RegistryTenants(registry, wants_keys=wants_keys),
                )
            )
        asked = {"model": model, "messages": [{"role": "user", "content": "Say it"}]}
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return started[0].http.post(CHAT, json=asked, headers=headers).status_code

    return chat


@pytest.fixture
def admin(registry):
    """The registry as another process has it."""
    with Registry(registry.path) as elsewhere:
        yield elsewhere.tenants


def wait_until(holds):
    import time

    until = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_keys_are_wanted_from_the_first_tenant_on_and_never_less(ask, admin, engine):
    assert ask(model="tiny", wants_keys=False) == 200
    admin.add_tenant("acme", allow=["legal"])
    assert ask(model="tiny") == 401
    key = admin.add_key("acme")
    assert ask(key) == 200
    assert ask() == 401
    admin.remove_tenant("acme")
    assert ask(key) == 401
    assert ask() == 401
    assert len(engine.requests) == 2


def test_a_server_that_began_with_tenants_stays_closed_when_they_are_gone(ask, admin):
    assert ask() == 401
    admin.add_tenant("acme")
    admin.remove_tenant("acme")
    assert ask() == 401


def test_keys_permissions_and_limits_hold_from_the_next_request_on(ask, admin):
    admin.add_tenant("acme", allow=["legal"])
    first, second = admin.add_key("acme"), admin.add_key("acme")
    assert [ask(first), ask(second)] == [200, 200]
    admin.revoke_key(first)
    assert [ask(first), ask(second)] == [401, 200]
    admin.disallow("acme", "legal")
    assert ask(second) == 404
    admin.allow("acme", "*")
    assert ask(second) == 200
    admin.change_tenant("acme", {"requests_per_minute": 1})
    assert [ask(second), ask(second)] == [200, 429]
    admin.change_tenant("acme", {"requests_per_minute": None})
    assert ask(second) == 200


def test_weights_of_tenants_old_and_new_reach_the_engine(ask, admin, engine, monkeypatch):
    monkeypatch.setattr("ince.serve.http.app._TENANT_SECONDS", 0.05)
    admin.add_tenant("acme", weight=2.0)
    ask()
    assert engine.weights == {"acme": 2.0}
    admin.add_tenant("other", weight=0.5)
    admin.change_tenant("acme", {"weight": 7.0})
    wait_until(lambda: engine.weights == {"acme": 7.0, "other": 0.5})
    admin.remove_tenant("acme")
    wait_until(lambda: engine.weights == {"other": 0.5})
