"""Which optimizer a run has, and where its state is, is one thing; what comes out another."""

import pytest
import torch
from pydantic import ValidationError

from ince.optim import PagesConfig
from ince.train import TrainConfig
from ince.train.checkpoint import latest_checkpoint
from ince.train.pages import PagesSection

IN_A_FILE = {"memory": 0, "page_bytes": 4096}


def run(small_run, folder, optimizer, **changes):
    model = small_run.base().requires_grad_(True)
    settings = {"method": "full", "lr": 1e-3, "max_steps": 5, "save_every": 2}
    small_run(folder, model=model, optimizer=optimizer, **(settings | changes))
    return small_run.trained(model)


def same(ours, theirs):
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_paged_run_is_the_same_run_wherever_its_state_is(tmp_path, small_run):
    plain = run(small_run, tmp_path / "plain", "adamw")
    assert same(run(small_run, tmp_path / "memory", "paged_adamw"), plain)
    assert same(run(small_run, tmp_path / "file", "paged_adamw", pages=IN_A_FILE), plain)
    tiers = [line["pages"] for line in small_run.log(tmp_path / "file") if "pages" in line]
    assert len(tiers) == 5
    assert tiers[-1]["file_bytes"] == 8 * sum(p.numel() for p in plain.values())
    assert tiers[-1]["device_bytes"] == 0
    in_memory = [line["pages"] for line in small_run.log(tmp_path / "memory") if "pages" in line]
    assert in_memory[-1]["file_bytes"] == 0
    # Nothing of the file is left behind, and checkpoints are those of torch's optimizer.
    assert sorted(p.name for p in (tmp_path / "file").iterdir()) == ["checkpoints", "log.jsonl"]
    found = latest_checkpoint(tmp_path / "file", warn=pytest.fail).tensors["optimizer"]
    other = latest_checkpoint(tmp_path / "plain", warn=pytest.fail).tensors["optimizer"]
    assert sorted(found) == sorted(other)
    assert all(torch.equal(found[name], other[name]) for name in other)


@pytest.mark.parametrize("optimizer", ["paged_adamw", "paged_adamw_8bit", "paged_lion"])
def test_it_goes_on_with_other_budgets_to_the_bit(tmp_path, small_run, optimizer):
    whole = run(small_run, tmp_path / "whole", optimizer)
    with pytest.raises(small_run.PowerGone):
        run(
            small_run,
            tmp_path / "cut",
            optimizer,
            pages=IN_A_FILE,
            observer=small_run.Watcher(3, small_run.stop),
        )
    assert same(
        run(small_run, tmp_path / "cut", optimizer, pages={"memory": "64KiB", "page_bytes": 4096}),
        whole,
    )


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "lion_8bit"])
def test_state_in_8_bits_goes_on_to_the_bit(tmp_path, small_run, optimizer):
    whole = run(small_run, tmp_path / "whole", optimizer)
    watcher = small_run.Watcher(3, small_run.stop)
    with pytest.raises(small_run.PowerGone):
        run(small_run, tmp_path / "cut", optimizer, observer=watcher)
    assert same(run(small_run, tmp_path / "cut", optimizer), whole)


def test_lion_has_its_own_betas_and_no_other_name_is_taken():
    assert TrainConfig(optimizer="lion").betas == (0.9, 0.99)
    assert TrainConfig(optimizer="lion", betas=(0.8, 0.9)).betas == (0.8, 0.9)
    assert TrainConfig().betas == (0.9, 0.999)
    assert TrainConfig(optimizer="paged_adamw_32bit").optimizer == "paged_adamw"
    with pytest.raises(ValidationError, match="paged_adamw"):
        TrainConfig(optimizer="sgd")


def test_pages_go_with_an_optimizer_that_has_some():
    with pytest.raises(ValidationError, match="optimizer: paged_adamw"):
        TrainConfig(pages={"memory": "256MiB"})
    config = TrainConfig(optimizer="paged_adamw", pages={"memory": "256MiB", "file": "auto"})
    assert config.pages.memory == 256 * 2**20


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"memory": "lots"}, "256MiB, or auto"),
        ({"memory": "1KiB"}, "less than one page"),
        ({"memory": -1}, "greater than or equal to 0"),
        ({"device": 0, "memory": 0, "file": 0}, "no tier"),
        ({"page_bytes": 1}, "page_bytes"),
        ({"disk": 0}, "Extra inputs"),
    ],
)
def test_budgets_that_cannot_be_are_refused(values, said):
    with pytest.raises(ValidationError, match=said):
        PagesSection(**values)


def test_a_section_becomes_budgets(tmp_path):
    section = PagesSection(memory="1GiB", device="auto")
    assert section.to_config(tmp_path) == PagesConfig(
        device=None, memory=2**30, file=None, directory=tmp_path
    )
    assert PagesSection(directory="elsewhere").to_config(tmp_path).directory.name == "elsewhere"
