"""What of a recipe decides its plan."""

from types import SimpleNamespace

import pytest
import torch

from ince.optim import build
from ince.plan import KNOWN_SHAPES, OPTIMIZERS, Rate, plan_memory, plan_time
from ince.plan.truth import RunPlan
from ince.recipe.load import parse_recipe
from ince.recipe.plan import note_truth, setup_of_recipe

SHAPE = KNOWN_SHAPES["SmolLM2-135M"]
MIB = 2**20


def test_every_optimizer_of_a_recipe_is_known_to_the_plan():
    assert set(OPTIMIZERS) == set(build.OPTIMIZERS)


@pytest.fixture
def setup_of(tmp_path):
    """The setup of a recipe with such sections, on a device."""
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')

    def made(device="cpu", model=None, lora=None, **train):
        recipe = parse_recipe(
            {
                "model": {"base": "smollm2-135m-instruct", **(model or {})},
                "lora": lora or {},
                "data": {"train": str(tmp_path / "rows.jsonl")},
                "train": train,
                "output": str(tmp_path / "run"),
            }
        )
        return setup_of_recipe(recipe, SHAPE, device=device)

    return made


@pytest.mark.parametrize(
    ("device", "pages", "here"),
    [
        ("cuda", None, 0),
        ("cuda", {"device": "64MiB"}, 64 * MIB),
        ("cuda", {"device": "auto"}, None),
        ("cpu", None, None),
        ("cpu", {"memory": "64MiB", "device": "16MiB"}, 80 * MIB),
        ("cpu", {"memory": 0}, 0),
    ],
)
def test_the_budget_of_pages_is_read(setup_of, device, pages, here):
    setup = setup_of(device, optimizer="paged_lion", pages=pages)
    assert (setup.optimizer, setup.device_moment_bytes) == ("paged_lion", here)


def test_full_fine_tuning_dropout_and_what_is_left_out_are_read(setup_of):
    assert setup_of(model={"quantize": None}, method="full").method == "full"
    setup = setup_of(lora={"dropout": 0.1, "exclude_modules": ["down_proj"]})
    assert setup.has_dropout
    assert {each.name for each in setup.adapted} == {*SHAPE.linear_names[:-1]}


def test_the_plan_beside_a_measurement_is_of_the_cut_that_ran(setup_of, monkeypatch):
    asked = []

    def planned(tokens):
        setup = setup_of().with_changes(num_rows=1, length=tokens)
        rate = Rate(1e11, None, None, 1.0, "", is_assumed=True)
        memory = plan_memory(SHAPE, setup)
        return RunPlan(SHAPE, setup, memory, plan_time(SHAPE, setup, rate))

    def again(_session, tokens):
        asked.append(tokens)
        return planned(tokens)

    monkeypatch.setattr("ince.recipe.plan._planned", again)
    cuts = [{"step": step, "micro_batch_tokens": 512 >> step} for step in (0, 1)]
    memory = {"held_bytes": 600 * MIB, "measured_bytes": 900 * MIB, "cuts": cuts}
    session = SimpleNamespace(
        recipe=SimpleNamespace(train=SimpleNamespace(micro_batch_tokens=4096)),
        record={"memory": memory, "base": {"weight_bytes": 1}},
        model=torch.nn.Linear(2, 2),
    )
    result = SimpleNamespace(steps=2, tokens_per_second=10.0)
    note_truth(session, planned(4096), result)
    found = session.record["plan"]
    assert asked == [512]
    assert (found["length"], found["num_cuts"]) == (512, 1)
