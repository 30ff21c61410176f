"""Tenants: what they may use, how much they may keep, and keys that are shown once."""

import sqlite3

import pytest

from ince.errors import AdapterError, InputError
from ince.registry import Usage, key_id
from ince.registry.database import DATABASE_FILE


@pytest.fixture
def tenants(registry):
    return registry.tenants


def test_a_tenant_sees_its_own_and_what_it_is_allowed(registry, tenants, write):
    shared, team, own, hidden = (write(seed) for seed in range(4))
    registry.put(shared, name="shared")
    registry.put(team, name="team/a")
    tenants.add_tenant("acme", allow=["team/*"])
    tenants.add_tenant("other")
    mine = registry.put(own, name="mine", tenant="acme")
    theirs = registry.put(hidden, name="theirs", tenant="other")
    assert list(registry.visible("acme")) == ["mine", "team/a"]
    assert list(registry.visible("other")) == ["theirs"]
    assert list(registry.visible()) == ["shared", "team/a"]
    assert list(registry.visible("nobody")) == []
    assert registry.resolve("mine", tenant="acme") == mine
    assert tenants.may_use("acme", "mine")
    assert tenants.may_use("acme", "team/x")
    assert not tenants.may_use("acme", "shared")
    assert not tenants.may_use("acme", "theirs")
    assert not tenants.may_use("acme", "teamx")
    tenants.allow("acme", "shared")
    assert registry.resolve("shared", tenant="acme") == registry.resolve("shared")
    tenants.disallow("acme", "shared")
    with pytest.raises(InputError, match="was not allowed"):
        tenants.disallow("acme", "shared")
    tenants.change_tenant("acme", {"is_admin": True})
    assert "shared" in registry.visible("acme")
    # Not even who knows the content may name it.
    with pytest.raises(AdapterError, match="acme has not put it"):
        registry.alias("stolen", theirs, tenant="acme")


def test_anothers_name_answers_as_one_that_is_not_there(registry, tenants, write):
    tenants.add_tenant("acme")
    tenants.add_tenant("other")
    registry.put(write(1), name="secret-name", tenant="other")
    registry.put(write(2), name="secret-names")
    said = []
    for name in ("secret-name", "secret-names", "secret-nowhere"):
        with pytest.raises(AdapterError) as caught:
            registry.resolve(name, tenant="acme")
        said.append(str(caught.value).replace(name, "NAME"))
    assert len(set(said)) == 1
    assert "did you mean" not in said[0]


def test_an_own_name_hides_a_shared_one(registry, tenants, write):
    shared = registry.put(write(1), name="a")
    tenants.add_tenant("acme", allow=["*"])
    assert registry.resolve("a", tenant="acme") == shared
    own = registry.put(write(2), name="a", tenant="acme")
    assert registry.resolve("a", tenant="acme") == registry.visible("acme")["a"] == own
    assert registry.resolve("a") == shared


def test_quotas_are_kept_and_a_collection_makes_room(registry, tenants, write):
    one = registry.entry(registry.put(write(1))).num_bytes
    tenants.add_tenant("few", max_adapters=1)
    tenants.add_tenant("small", max_bytes=one + one // 2)
    for tenant in ("few", "small"):
        registry.put(write(1), name="a", tenant=tenant)
        registry.put(write(1), name="again", tenant=tenant)
        before = registry.version(), len(registry.entries())
        with pytest.raises(AdapterError, match="quota|too large"):
            registry.put(write(2), name="b", tenant=tenant)
        assert (registry.version(), len(registry.entries())) == before
        registry.remove("a", tenant=tenant)
        registry.remove("again", tenant=tenant)
        registry.gc()
        registry.put(write(2), name="b", tenant=tenant)
    with pytest.raises(InputError, match="no such tenant"):
        registry.put(write(3), tenant="nobody")


def test_a_tenant_goes_with_all_that_was_its(registry, tenants, write):
    tenants.add_tenant("acme", allow=["*"])
    registry.put(write(1), name="a", tenant="acme")
    key = tenants.add_key("acme")
    tenants.add_usage(Usage("acme", "", 3, 4))
    with pytest.raises(InputError, match="still have names"):
        tenants.remove_tenant("acme")
    registry.remove("a", tenant="acme")
    tenants.remove_tenant("acme")
    assert tenants.authenticate(key) is None
    tenants.add_tenant("acme")
    assert (tenants.keys(), tenants.usage(), registry.entries(tenant="acme")) == ([], [], [])
    with pytest.raises(AdapterError):
        registry.history("a", tenant="acme")
    last = next(each for each in registry.audit() if each.action == "tenant remove")
    assert last.before is not None
    assert last.before["usage"] == {"prompt_tokens": 3, "completion_tokens": 4}


def test_keys_are_checked_and_never_kept(registry, tenants, tmp_path):
    tenants.add_tenant("acme", tokens_per_minute=5)
    key = tenants.add_key("acme", label="laptop")
    other = tenants.add_key("acme")
    for _ in range(2):
        found = tenants.authenticate(key)
        assert found is not None
        assert (found.name, found.tokens_per_minute) == ("acme", 5)
    wrong = key[:-1] + ("A" if key[-1] != "A" else "B")
    swapped = f"ince-{key_id(other)}-{key.split('-', 2)[2]}"
    for secret in (wrong, swapped, "", "ince-", "x" * 100_000, "\ud800", key + "\n", key.upper()):
        assert tenants.authenticate(secret) is None
    registry.as_actor("bob").tenants.revoke_key(key)
    assert tenants.authenticate(key) is None
    assert tenants.authenticate(other) is not None
    revoked = {each.id: each.revoked is not None for each in tenants.keys(tenant="acme")}
    assert revoked == {key_id(key): True, key_id(other): False}
    with pytest.raises(InputError, match="no such key"):
        tenants.revoke_key("0" * 16)
    for path in (tmp_path / "registry").iterdir():
        if path.is_file():
            assert key.split("-", 2)[2].encode() not in path.read_bytes()
    assert (tmp_path / "registry" / DATABASE_FILE).stat().st_mode & 0o077 == 0


def test_whatever_is_wrong_with_a_key_costs_one_hash(tenants, monkeypatch):
    checked = []

    def fits(kept, secret):
        checked.append((kept.split("$")[1:4], len(secret) > 0))
        return False

    tenants.add_tenant("acme")
    key, revoked = tenants.add_key("acme"), tenants.add_key("acme")
    tenants.revoke_key(revoked)
    monkeypatch.setattr("ince.registry.keys._fits", fits)
    for secret in (key, revoked, f"ince-{'0' * 16}-{'A' * 43}", "nonsense"):
        assert tenants.authenticate(secret) is None
    assert checked == [(["argon2id", "v=19", "m=19456,t=2,p=1"], True)] * 4


def test_without_argon2_it_says_what_to_install(tenants, monkeypatch):
    tenants.add_tenant("acme")
    monkeypatch.setitem(__import__("sys").modules, "argon2", None)
    with pytest.raises(InputError, match="pip install 'ince\\[serve\\]'"):
        tenants.add_key("acme")


@pytest.mark.parametrize(
    ("limit", "value"),
    [
        ("requests_per_minute", 0),
        ("tokens_per_minute", -1),
        ("max_concurrent", 1.5),
        ("max_adapters", True),
        ("max_bytes", 2**63),
        ("weight", 0),
        ("weight", float("nan")),
        ("weight", None),
        ("is_admin", 1),
        ("max_concurent", 1),
        ("name", "x"),
    ],
)
def test_a_limit_that_cannot_be_is_refused(tenants, limit, value):
    tenants.add_tenant("acme")
    with pytest.raises(InputError, match="limit"):
        tenants.change_tenant("acme", {limit: value})


def test_names_of_tenants_and_permissions_are_checked(tenants):
    tenants.add_tenant("acme")
    with pytest.raises(InputError, match="there is a tenant of this name"):
        tenants.add_tenant("acme")
    for name in ("", "a/b", ".a", "a b", "x" * 129):
        with pytest.raises(InputError):
            tenants.add_tenant(name)
    for pattern in ("", "**", "a*", "/*", "../*", ".x"):
        with pytest.raises(InputError, match="permits no adapter"):
            tenants.allow("acme", pattern)
    with pytest.raises(InputError, match="did you mean 'acme'"):
        tenants.tenant("acmee")
    with pytest.raises(InputError, match="one short line"):
        tenants.add_key("acme", label="a\nb")


def test_usage_adds_up_by_day_and_adapter(registry, tenants):
    version = registry.version()
    tenants.add_usage(Usage("acme", "", 1, 2, day="2026-01-01"), Usage("acme", "d", 5, 6))
    tenants.add_usage(Usage("acme", "", 10, 20, num_requests=3, day="2026-01-01"))
    tenants.add_usage(Usage("zoo", "", 1, 1))
    first, second = tenants.usage("acme")
    assert (first.day, first.num_requests, first.prompt_tokens) == ("2026-01-01", 4, 11)
    assert first.completion_tokens == 22
    assert [each.adapter for each in tenants.usage("acme", since="2026-01-02")] == ["d"]
    assert len(tenants.usage()) == 3
    assert registry.version() == version
    with pytest.raises(InputError, match="negative"):
        tenants.add_usage(Usage("acme", "", 1, 1, day="2026-01-01"), Usage("acme", "", -1, 0))
    assert tenants.usage("acme")[0] == first
    assert second.num_requests == 1


def test_the_log_of_changes_cannot_be_altered_unseen(registry, tenants, tmp_path):
    tenants.add_tenant("acme")
    tenants.allow("acme", "x")
    with sqlite3.connect(tmp_path / "registry" / DATABASE_FILE) as direct:
        for change in ("UPDATE audit SET actor = 'eve'", "DELETE FROM audit"):
            with pytest.raises(sqlite3.IntegrityError, match="appended to only"):
                direct.execute(change)
        direct.execute("DROP TRIGGER audit_is_not_altered")
        direct.execute("UPDATE audit SET actor = 'eve' WHERE id = 1")
    assert registry.verify().problems == ("audit log: change 1 was altered",)
    with sqlite3.connect(tmp_path / "registry" / DATABASE_FILE) as direct:
        direct.execute("UPDATE audit SET actor = 'ada' WHERE id = 1")
    direct.close()
