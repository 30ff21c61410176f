"""A registry on a disk that is full, and with a database of damaged bytes."""

import contextlib
import shutil

import pytest
import torch

from ince.errors import DiskFullError, InceError
from ince.formats.adapter import write_adapter
from ince.lora import LoraConfig
from ince.registry import Registry, Usage
from ince.registry.database import DATABASE_FILE

SIZE = 2 << 20


@pytest.fixture
def write(tmp_path):
    def make(seed, rows):
        torch.manual_seed(seed)
        tensors = {
            "base_model.model.q_proj.lora_A.weight": torch.randn(2, rows),
            "base_model.model.q_proj.lora_B.weight": torch.randn(8, 2),
        }
        config = LoraConfig(r=2, target_modules=["q_proj"]).to_peft_dict()
        write_adapter(tmp_path / f"adapter-{seed}", config, tensors)
        return tmp_path / f"adapter-{seed}"

    return make


def fill(folder):
    path = folder / "download.iso"
    with path.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(b"\0" * 4096)
    assert shutil.disk_usage(folder).free == 0
    return path


def test_an_adapter_that_does_not_fit_leaves_nothing(small_disk, write):
    with Registry(small_disk / "r", create=True) as registry:
        kept = registry.put(write(1, 100), name="a")
        version, free = registry.version(), shutil.disk_usage(small_disk).free
        for _ in range(2):
            with pytest.raises(DiskFullError, match="no space left"):
                registry.put(write(2, SIZE // 8), name="a")
        assert shutil.disk_usage(small_disk).free == free
        assert (registry.version(), registry.resolve("a")) == (version, kept)
        assert registry.verify().problems == ()


def test_on_a_full_disk_names_stay_and_are_read(small_disk, write):
    first, second, third = (write(seed, 100) for seed in (1, 2, 3))
    with Registry(small_disk / "r", create=True) as registry:
        digests = [registry.put(each, name="a") for each in (first, second)]
        iso = fill(small_disk)
        refused = 0
        for _ in range(40):
            # The journal may have some pages left; then it is full.
            try:
                registry.alias("a", digests[refused % 2])
                registry.alias("b", digests[0])
                registry.remove("b")
            except DiskFullError:
                refused += 1
        with pytest.raises(DiskFullError):
            registry.put(third, name="a")
        assert refused > 0
        assert registry.resolve("a") in digests
        assert len(registry.entries()) == 2
        assert registry.verify().problems == ()
    with Registry(small_disk / "r") as registry:
        assert registry.resolve("a") in digests
        iso.unlink()
        registry.put(third, name="a")
        registry.gc(keep=0)
        assert registry.verify().problems == ()


def test_damaged_bytes_of_a_database_are_an_error_or_do_no_harm(
    tmp_path, write, survives, mutate, monkeypatch
):
    monkeypatch.setattr("ince.registry.database._BUSY_SECONDS", 0.1)
    source = write(1, 10)
    with Registry(tmp_path / "r", create=True) as registry:
        digest = registry.put(source, name="a")
        registry.tenants.add_tenant("acme", allow=["*"])
        registry.tenants.add_usage(Usage("acme", digest, 1, 2))
    valid = (tmp_path / "r" / DATABASE_FILE).read_bytes()

    def attempt(dice):
        for left in ("-wal", "-shm"):
            (tmp_path / "r" / (DATABASE_FILE + left)).unlink(missing_ok=True)
        (tmp_path / "r" / DATABASE_FILE).write_bytes(mutate(valid, dice))
        with Registry(tmp_path / "r") as registry:
            steps = (
                registry.entries,
                registry.visible,
                registry.audit,
                registry.tenants.tenants,
                registry.tenants.usage,
                lambda: registry.tenants.authenticate("x"),
                lambda: registry.history("a"),
                lambda: registry.alias("b", digest),
                lambda: registry.put(source, name="c"),
                lambda: registry.gc(min_age_seconds=0),
                registry.verify,
            )
            for step in steps:
                with contextlib.suppress(InceError):
                    step()

    tried, _ = survives(attempt, 4, extra_bytes=256 << 20)
    assert tried > 5
