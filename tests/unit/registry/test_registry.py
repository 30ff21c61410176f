"""Adapters by content: put, named, found, turned back, removed, collected."""

import json

import pytest

from ince.errors import AdapterError, CorruptFileError, InputError
from ince.formats.adapter import adapter_digest, read_adapter
from ince.registry import Registry

BASE = "b" * 64


def test_what_is_put_is_found_by_name_and_by_content(registry, write):
    source = write(1)
    (source / "README.md").write_text("not part of it")
    digest = registry.put(source, name="team/turkish-v1.2")
    assert digest == adapter_digest(source)
    assert registry.resolve("team/turkish-v1.2") == digest
    folder = registry.folder(digest)
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "ince.json",
    ]
    read_adapter(folder, digest=digest)
    entry = registry.entry(digest)
    assert (entry.base_digest, entry.config["r"], entry.config["num_parameters"]) == (BASE, 2, 32)
    assert entry.num_bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert [(held.tenant, held.names) for held in entry.holdings] == [("", ("team/turkish-v1.2",))]
    assert registry.find(digest[:8]) == registry.find("team/turkish-v1.2") == digest
    json.dumps(entry.to_dict())


def test_the_same_content_is_there_once_and_changes_nothing(registry, write):
    digest = registry.put(write(1), name="a")
    version = registry.version()
    assert registry.put(write(1), name="a") == digest
    assert registry.version() == version
    registry.tenants.add_tenant("acme")
    assert registry.put(write(1), name="a", tenant="acme") == digest
    assert len(registry.entries()) == 1
    assert {held.tenant for held in registry.entry(digest).holdings} == {"", "acme"}


def test_a_damaged_copy_is_mended_by_putting_it_again(registry, write):
    digest = registry.put(write(1), name="a")
    weights = registry.folder(digest) / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"\0")
    assert registry.verify().problems == (f"{digest}: its files are not what was put",)
    registry.put(write(1))
    assert weights.read_bytes() == whole
    assert registry.verify().problems == ()


def test_a_base_becomes_known_later_but_not_another(registry, write):
    digest = registry.put(write(1, base_digest=None))
    assert registry.entry(digest).base_digest is None
    assert not (registry.folder(digest) / "ince.json").exists()
    registry.put(write(1, base_digest=None), base_digest=BASE)
    assert registry.entry(digest).base_digest == BASE
    assert json.loads((registry.folder(digest) / "ince.json").read_text()) == {"base_digest": BASE}
    registry.put(write(1, base_digest=None))
    assert registry.entry(digest).base_digest == BASE
    with pytest.raises(AdapterError, match="another base"):
        registry.put(write(1, base_digest="c" * 64))
    with pytest.raises(AdapterError, match="names another base"):
        registry.put(write(2), base_digest="c" * 64)
    with pytest.raises(InputError, match="no digest"):
        registry.put(write(2), base_digest="smollm")


def test_a_rollback_goes_back_and_further_back(registry, write):
    first, second, third = (registry.put(write(seed), name="a") for seed in (1, 2, 3))
    assert registry.resolve("a") == third
    assert registry.rollback("a") == registry.resolve("a") == second
    assert registry.rollback("a") == first
    with pytest.raises(AdapterError, match="nothing to go back to"):
        registry.rollback("a")
    registry.alias("a", third)
    assert registry.rollback("a") == first
    seen = [(v.number, v.digest, v.previous, v.is_current) for v in registry.history("a")]
    assert seen == [
        (4, third, 1, False),
        (3, third, 2, False),
        (2, second, 1, False),
        (1, first, None, True),
    ]


def test_a_name_that_is_removed_is_gone_and_its_history_is_not(registry, write):
    digest = registry.put(write(1), name="a")
    assert registry.remove("a") == digest
    with pytest.raises(AdapterError, match="no adapter has this name"):
        registry.resolve("a")
    with pytest.raises(AdapterError, match="no adapter has this name"):
        registry.remove("a")
    assert [v.is_current for v in registry.history("a")] == [False]
    registry.alias("a", digest)
    assert [v.number for v in registry.history("a")] == [2, 1]


def test_a_near_name_is_suggested(registry, write):
    registry.put(write(1), name="turkish")
    with pytest.raises(AdapterError, match="did you mean 'turkish'"):
        registry.resolve("turkisch")


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", ".a", "a/.b", "../a", "a/../b", "/a", "a/", "a//b", "a b", "ä", "a\n"),
        *("a\0", "a\\b", "%2e%2e", "x" * 129, "f" * 64, "a" * 60 + "/" + "b" * 68),
    ],
)
def test_a_name_that_could_be_a_path_or_a_digest_is_refused(registry, write, name):
    with pytest.raises(InputError, match="cannot have this name"):
        registry.put(write(1), name=name)
    with pytest.raises(InputError):
        registry.alias(name, "f" * 64)
    with pytest.raises(AdapterError, match="no adapter has this name"):
        registry.resolve(name)
    assert registry.entries() == []


@pytest.mark.parametrize("digest", ["", "../../etc", "A" * 64, "f" * 63, "f" * 65, "f" * 64 + "\n"])
def test_what_is_no_digest_leads_nowhere(registry, digest):
    for ask in (registry.folder, registry.entry):
        with pytest.raises(InputError, match="no digest"):
            ask(digest)
    with pytest.raises(AdapterError):
        registry.folder("f" * 64)


def test_a_collection_removes_what_no_name_reaches(registry, write):
    digests = [registry.put(write(seed), name="a") for seed in range(6)]
    nameless = registry.put(write(9))
    version = registry.version()
    planned = registry.gc(dry_run=True, keep=2, min_age_seconds=0)
    assert (registry.version(), len(registry.entries())) == (version, 7)
    done = registry.gc(keep=2, min_age_seconds=0)
    assert set(done.digests) == set(planned.digests) == {*digests[:3], nameless}
    assert done.num_bytes == planned.num_bytes > 0
    assert done.num_kept == 3
    for digest in done.digests:
        with pytest.raises(AdapterError):
            registry.folder(digest)
    assert registry.rollback("a") == digests[4]
    assert registry.rollback("a") == digests[3]
    with pytest.raises(AdapterError, match="no longer in the registry"):
        registry.rollback("a")
    assert [v.is_here for v in registry.history("a")] == [True] * 3 + [False] * 3
    # What was rolled back is kept too: it may be wanted again.
    assert registry.gc(keep=2).digests == ()
    assert set(registry.gc(keep=0).digests) == {digests[4], digests[5]}


def test_what_is_new_and_nameless_is_left_alone(registry, write):
    digest = registry.put(write(1))
    assert registry.gc().digests == ()
    assert registry.gc(min_age_seconds=0).digests == (digest,)
    with pytest.raises(InputError):
        registry.gc(keep=-1)
    with pytest.raises(InputError):
        registry.gc(min_age_seconds=float("nan"))


def test_content_stays_while_one_of_its_holders_has_a_name(registry, write):
    registry.tenants.add_tenant("acme")
    digest = registry.put(write(1), name="a")
    registry.put(write(1), name="b", tenant="acme")
    registry.remove("a")
    assert registry.gc(keep=0).digests == ()
    assert [held.tenant for held in registry.entry(digest).holdings] == ["acme"]
    registry.folder(digest)


def test_a_run_is_put_with_where_it_comes_from(registry, write, tmp_path):
    run = tmp_path / "run"
    write(1).rename(tmp_path / "moved")
    run.mkdir()
    (tmp_path / "moved").rename(run / "adapter")
    record = {
        "format": "ince-run/1",
        "status": "done",
        "created": "2026-01-01T00:00:00+00:00",
        "recipe_digest": "r1",
        "recipe": {"secret": "prompt"},
        "base": {"name": "tiny", "digest": "d"},
        "data": {"train": {"digest": "t1", "path": "private.jsonl"}, "eval": None},
        "training": {"final_loss": float("inf")},
        "adapter": {"digest": adapter_digest(run / "adapter")},
    }
    (run / "run.json").write_text(json.dumps(record))
    digest = registry.put(run, name="a")
    (held,) = registry.entry(digest).holdings
    assert held.lineage == {
        "status": "done",
        "created": "2026-01-01T00:00:00+00:00",
        "recipe_digest": "r1",
        "base": "tiny",
        "base_files_digest": "d",
        "train_data_digest": "t1",
        "adapter_digest": digest,
    }
    record["adapter"]["digest"] = "0" * 64
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(AdapterError, match="not the one that its run recorded"):
        registry.put(run / "adapter")
    (run / "run.json").write_text("{}")
    with pytest.raises(CorruptFileError, match="not a run record"):
        registry.put(run)
    assert len(registry.entries()) == 1


def test_every_change_is_in_the_log_with_what_was_before(registry, write):
    first = registry.put(write(1), name="a")
    second = registry.as_actor("tenant:bob").put(write(2), name="a")
    registry.rollback("a")
    registry.remove("a")
    log = registry.audit()
    assert [(each.action, each.actor) for each in log] == [
        ("put", "ada"),
        ("alias", "ada"),
        ("put", "tenant:bob"),
        ("alias", "tenant:bob"),
        ("rollback", "ada"),
        ("remove", "ada"),
    ]
    assert log[4].before == {"digest": second, "version": 2}
    assert log[4].after == {"digest": first, "version": 1}
    assert all(each.time.endswith("+00:00") for each in log)
    assert registry.version() == log[-1].id == 6
    assert [each.id for each in registry.audit(last=2, after_id=3)] == [5, 6]


def test_what_was_put_is_there_when_it_is_opened_again(registry, write, tmp_path):
    digest = registry.put(write(1), name="a")
    with Registry(tmp_path / "registry") as again:
        assert again.resolve("a") == digest
        before = again.version()
        registry.put(write(2), name="a")
        assert again.version() > before
        assert again.resolve("a") != digest
