"""What of a recipe decides its plan."""

import pytest

from ince.optim import build
from ince.plan import KNOWN_SHAPES, OPTIMIZERS
from ince.recipe.load import parse_recipe
from ince.recipe.plan import setup_of_recipe

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
    assert setup.targets == SHAPE.linear_names[:-1]
