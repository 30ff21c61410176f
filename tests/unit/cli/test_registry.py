"""`ince registry`: the commands, on a real folder."""

import json

import pytest
import torch

from ince.formats.adapter import write_adapter
from ince.lora import LoraConfig


@pytest.fixture
def write(tmp_path):
    def make(seed):
        torch.manual_seed(seed)
        tensors = {
            "base_model.model.q_proj.lora_A.weight": torch.randn(2, 8),
            "base_model.model.q_proj.lora_B.weight": torch.randn(8, 2),
        }
        config = LoraConfig(r=2, use_dora=seed == 2, target_modules=["q_proj"]).to_peft_dict()
        write_adapter(tmp_path / str(seed), config, tensors)
        return str(tmp_path / str(seed))

    return make


@pytest.fixture
def run(command, tmp_path, monkeypatch):
    """Run one command of the registry; returns what it printed, as JSON where asked."""
    monkeypatch.setenv("INCE_REGISTRY", str(tmp_path / "registry"))

    def call(*arguments, code=0):
        found, out, err = command("registry", *arguments)
        assert found == code, out + err
        return json.loads(out) if "--json" in arguments else out + err

    return call


def test_the_life_of_a_name(run, write, tmp_path):
    assert "turkish is version 1" in run("put", write(1), "--name", "turkish")
    second = run("put", write(2), "--name", "turkish", "--json")["adapter"]["digest"]
    listed = run("list")
    assert second[:12] in listed
    assert "lora r=2 DoRA" in listed
    assert "turkish" in listed
    assert len(run("list", "--json")["adapters"]) == 2
    assert run("show", "turkish", "--json")["adapter"]["digest"] == second
    assert str(tmp_path / "registry" / "content" / second) in run("show", second[:8])
    first = run("rollback", "turkish", "--json")["digest"]
    assert first != second
    assert "now" in run("history", "turkish")
    assert len(run("history", "turkish", "--json")["versions"]) == 2
    assert run("alias", "turkish", second[:10], "--json")["number"] == 3
    assert "is gone" in run("remove", "turkish")
    assert "would remove 2 adapters" in run("gc", "--dry-run", "--keep", "0")
    assert set(run("gc", "--keep", "0", "--json")["digests"]) == {first, second}
    assert "✓ 0 adapters" in run("verify")
    shown = run("audit")
    assert "rollback" in shown
    assert f"digest {second[:12]}… → {first[:12]}…" in shown
    assert [each["action"] for each in run("audit", "--last", "2", "--json")["changes"]] == [
        "gc",
        "gc",
    ]


def test_tenants_and_keys(run, write):
    run("put", write(1), "--name", "shared")
    assert "acme" in run("tenant", "add", "acme", "--allow", "shared", "--max-bytes", "2MiB")
    changed = run("tenant", "change", "acme", "--max-bytes", "none", "--weight", "2", "--json")
    assert changed["tenant"]["max_bytes"] is None
    assert changed["tenant"]["weight"] == 2
    assert run("tenant", "change", "acme", "--admin", "--json")["tenant"]["is_admin"]
    assert not run("tenant", "change", "acme", "--no-admin", "--json")["tenant"]["is_admin"]
    assert "team/*" in run("tenant", "allow", "acme", "team/*")
    assert run("tenant", "disallow", "acme", "team/*", "--json")["tenant"]["allowed"] == ["shared"]
    made = run("key", "add", "acme", "--label", "laptop", "--json")
    assert made["key"].startswith(f"ince-{made['id']}-")
    assert "not shown again" in run("key", "add", "acme")
    assert made["key"] not in run("key", "list", "acme")
    assert "revoked" in run("key", "revoke", made["id"])
    assert run("key", "list", "--json")["keys"][0]["revoked"] is not None
    assert run("tenant", "usage", "acme", "--since", "2026-01-01", "--json") == {"usage": []}
    assert "answer tokens" in run("tenant", "usage")
    assert len(run("tenant", "list", "--json")["tenants"]) == 1
    assert "may use" in run("tenant", "list")
    assert "acme is gone" in run("tenant", "remove", "acme")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("list",), "there is no registry here"),
        (("put", "nowhere"), "no such adapter folder"),
        (("tenant", "add", "acme", "--max-concurrent", "many"), "neither a whole number nor none"),
        (("tenant", "add", "acme", "--max-bytes", "2 parsecs"), "unknown unit"),
        (("gc", "--keep", "-1"), "--keep"),
        (("tenant", "change", "acme"), "nothing to change"),
        (("tenant", "usage", "--since", "soon"), "--since"),
        (("lst",), "No such command"),
    ],
)
def test_what_cannot_be_is_one_clear_error(run, arguments, said):
    assert said.lower() in run(*arguments, code=2).lower()


def test_damage_is_a_proof_that_did_not_hold(run, write, tmp_path):
    digest = run("put", write(1), "--json")["adapter"]["digest"]
    (tmp_path / "registry" / "content" / digest / "adapter_config.json").write_text("{}")
    assert "its files are not what was put" in run("verify", code=3)
    assert len(run("verify", "--json", code=3)["problems"]) == 1


def test_names_of_others_cannot_move_the_cursor(run, write):
    run("put", write(1), "--name", "[red]a[/red]", code=2)
    run("tenant", "add", "acme")
    run("key", "add", "acme", "--label", "[bold]x[/bold]")
    assert "[bold]x[/bold]" in run("key", "list")
