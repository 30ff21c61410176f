"""What is no adapter is refused before the registry has anything of it."""

import json
import os
import shutil
import struct

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
