"""What is no adapter is refused before the registry has anything of it."""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest

from ince.errors import AdapterError, ConfigError, CorruptFileError, InceError, InputError
from ince.formats.adapter import adapter_digest

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def link_out(folder):
    outside = folder.parent / "outside"
    (folder / WEIGHTS).rename(outside)
    (folder / WEIGHTS).symlink_to(outside)


def pipe(folder):
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def loop(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(WEIGHTS)


def pickle_inside(folder):
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")


def pickle_renamed(folder):
    (folder / WEIGHTS).write_bytes(b"PK\x03\x04" + bytes(200))


def cut(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-3])


def no_weights(folder):
    header = b"{}"
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header)


def not_finite(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-4:] = struct.pack("<f", float("nan"))
    (folder / WEIGHTS).write_bytes(data)


def other_option(folder):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"use_telepathy": True}))


def other_method(folder):
    (folder / CONFIG).write_text(json.dumps({"peft_type": "PREFIX_TUNING"}))


def no_json(folder):
    (folder / CONFIG).write_bytes(b"\xff\xfe{")


def huge_config(folder):
    (folder / CONFIG).write_text(" " * (9 << 20))


def odd_base(folder):
    (folder / "ince.json").write_text(json.dumps({"base_digest": "../../base"}))


@pytest.mark.parametrize(
    ("spoil", "kind", "said"),
    [
        (link_out, AdapterError, "a link that leads out of its folder"),
        (pipe, AdapterError, "not a regular file"),
        (loop, InputError, "cannot read this file"),
        (pickle_inside, AdapterError, "pickle form are not read"),
        (pickle_renamed, AdapterError, "pickle form are not read"),
        (cut, CorruptFileError, "cannot be read"),
        (no_weights, AdapterError, "has no weights"),
        (not_finite, AdapterError, "NaN or infinite"),
        (other_option, ConfigError, "use_telepathy"),
        (other_method, AdapterError, "not a LoRA adapter"),
        (no_json, CorruptFileError, "not readable as JSON"),
        (huge_config, AdapterError, "too large"),
        (odd_base, InputError, "no digest"),
        (shutil.rmtree, InputError, "no such adapter folder"),
    ],
)
def test_what_is_no_adapter_is_refused(registry, write, tmp_path, spoil, kind, said):
    folder = write(1)
    spoil(folder)
    with pytest.raises(kind, match=said) as caught:
        registry.put(folder, name="a")
    # It speaks of what was given, not of the copy.
    assert "incoming" not in str(caught.value)
    assert registry.entries() == []
    assert registry.version() == 0
    assert not (tmp_path / "registry" / "content").exists()
    assert list((tmp_path / "registry" / "incoming").iterdir()) == []


def test_a_link_within_the_folder_is_followed(registry, write):
    folder = write(1)
    (folder / "blobs").mkdir()
    (folder / WEIGHTS).rename(folder / "blobs" / "1")
    (folder / WEIGHTS).symlink_to("blobs/1")
    copy = registry.folder(registry.put(folder))
    assert not (copy / WEIGHTS).is_symlink()


def in_hub_cache(write, cache, seed=1, name="models--org--turkish"):
    """An adapter as `hf download` leaves it: links to blobs that are named by their hashes."""
    files, repository = write(seed), cache / name
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate((CONFIG, WEIGHTS)):
        (files / file).rename(repository / "blobs" / f"{number:064x}")
        (snapshot / file).symlink_to(f"../../blobs/{number:064x}")
    return snapshot


def test_a_snapshot_of_the_hub_cache_is_taken_by_content(registry, write, tmp_path):
    plain = adapter_digest(write(1))
    snapshot = in_hub_cache(write, tmp_path / "hub")
    (tmp_path / "link").symlink_to(tmp_path / "hub")
    digest = registry.put(snapshot)
    assert (
        digest == plain == registry.put(tmp_path / "link" / snapshot.relative_to(tmp_path / "hub"))
    )
    assert not any(path.is_symlink() for path in registry.folder(digest).iterdir())
    shutil.rmtree(tmp_path / "hub")
    assert adapter_digest(registry.folder(digest)) == digest


def test_an_adapter_in_a_subfolder_of_a_snapshot_is_taken(registry, write, tmp_path):
    snapshot = in_hub_cache(write, tmp_path)
    inside = snapshot / "checkpoint-7"
    inside.mkdir()
    for file in (CONFIG, WEIGHTS):
        (inside / file).symlink_to(Path("..") / (snapshot / file).readlink())
    assert registry.put(inside) == registry.put(snapshot)


def to_another_repository(snapshot, write, cache):
    other = in_hub_cache(write, cache, 2, "models--org--secret")
    (snapshot / WEIGHTS).symlink_to((other / WEIGHTS).resolve())


def to_beside_the_blobs(snapshot, write, cache):
    write(2).joinpath(WEIGHTS).rename(snapshot.parents[1] / "refs")
    (snapshot / WEIGHTS).symlink_to("../../blobs/../refs")


def to_beneath_the_blobs(snapshot, write, cache):
    shutil.move(write(2), snapshot.parents[1] / "blobs" / "more")
    (snapshot / WEIGHTS).symlink_to(f"../../blobs/more/{WEIGHTS}")


def to_a_blob_that_leads_on(snapshot, write, cache):
    (snapshot.parents[1] / "blobs" / "x").symlink_to(write(2) / WEIGHTS)
    (snapshot / WEIGHTS).symlink_to("../../blobs/x")


def to_blobs_that_lead_on(snapshot, write, cache):
    blobs = snapshot.parents[1] / "blobs"
    blobs.rename(cache / "elsewhere")
    blobs.symlink_to(cache / "elsewhere")
    (snapshot / WEIGHTS).symlink_to(f"../../blobs/{1:064x}")


def in_no_repository(snapshot, write, cache):
    (snapshot / WEIGHTS).symlink_to(f"../../blobs/{1:064x}")
    snapshot.parents[1].rename(cache / "not-a-model")


@pytest.mark.parametrize(
    "lead",
    [
        to_another_repository,
        to_beside_the_blobs,
        to_beneath_the_blobs,
        to_a_blob_that_leads_on,
        to_blobs_that_lead_on,
        in_no_repository,
    ],
)
def test_links_of_a_snapshot_lead_to_its_own_blobs_and_nowhere_else(
    registry, write, tmp_path, lead
):
    snapshot = in_hub_cache(write, tmp_path)
    (snapshot / WEIGHTS).unlink()
    lead(snapshot, write, tmp_path)
    (place,) = tmp_path.glob("*/snapshots/*") if lead is in_no_repository else [snapshot]
    assert (place / WEIGHTS).is_file()
    with pytest.raises(AdapterError, match="a link that leads out of its folder"):
        registry.put(place, name="a")
    assert registry.entries() == []


def test_what_changes_after_it_was_put_changes_nothing_here(registry, write):
    folder = write(1)
    digest = registry.put(folder)
    (folder / WEIGHTS).write_bytes(b"other")
    shutil.rmtree(folder)
    assert adapter_digest(registry.folder(digest)) == digest


def test_a_folder_that_is_gone_is_said_and_mended(registry, write):
    digest = registry.put(write(1), name="a")
    shutil.rmtree(registry.folder(digest))
    with pytest.raises(AdapterError, match="no adapter of this digest"):
        registry.folder(digest)
    assert registry.verify().problems == (f"{digest}: its folder is gone",)
    registry.gc(keep=0, min_age_seconds=0)
    registry.put(write(1))
    registry.folder(digest)


def test_leftovers_of_a_killed_process_are_cleared(registry, write, tmp_path):
    folder = tmp_path / "registry"
    kept = registry.put(write(1), name="a")
    orphan = "0" * 64
    shutil.copytree(folder / "content" / kept, folder / "content" / orphan)
    half = folder / "incoming" / ".0123.0123456789ab.tmp"
    half.mkdir()
    (half / WEIGHTS).write_bytes(b"x")
    done = registry.gc()
    assert (done.leftovers, done.digests, done.swept) == ((orphan,), (), True)
    assert [path.name for path in (folder / "content").iterdir()] == [kept]
    assert list((folder / "incoming").iterdir()) == []


def test_a_copy_that_is_being_made_is_not_swept(registry, write, monkeypatch):
    seen = []
    real = registry._content.is_whole

    def collect(digest):
        seen.append(registry.gc(min_age_seconds=0))
        return real(digest)

    monkeypatch.setattr(registry._content, "is_whole", collect)
    digest = registry.put(write(1), name="a")
    monkeypatch.undo()
    assert [done.swept for done in seen] == [False]
    registry.folder(digest)


def test_content_that_is_collected_while_it_is_put_again_is_copied(registry, write, monkeypatch):
    """Between looking for the content and holding the database, another process removes it."""
    digest = registry.put(write(1))
    real = registry._content.is_whole

    def collect(which):
        found = real(which)
        monkeypatch.undo()
        assert registry.gc(min_age_seconds=0).digests == (digest,)
        return found

    monkeypatch.setattr(registry._content, "is_whole", collect)
    registry.put(write(1), name="a")
    assert adapter_digest(registry.folder(digest)) == digest


def test_a_put_that_fails_late_leaves_nothing(registry, write, tmp_path, monkeypatch):
    def broken(intake):
        real(intake)
        raise InceError("the last moment")

    real = registry._content.accept
    monkeypatch.setattr(registry._content, "accept", broken)
    with pytest.raises(InceError, match="the last moment"):
        registry.put(write(1), name="a")
    assert registry.entries() == []
    assert list((tmp_path / "registry" / "content").iterdir()) == []
    assert list((tmp_path / "registry" / "incoming").iterdir()) == []
