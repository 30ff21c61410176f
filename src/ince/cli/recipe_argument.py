"""The argument RECIPE: a recipe's file, or the folder of a run, which keeps one."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ince.errors import InputError

if TYPE_CHECKING:
    from ince.recipe import Recipe

__all__ = ["read_recipe"]


def read_recipe(text: str, overrides: Sequence[str]) -> "Recipe":
    """The recipe that `text` names: a file, or the one that a run folder keeps.

    Raises:
        InputError: there is none, or it has mistakes.
    """
    from ince.recipe import load_recipe

    path = Path(text).expanduser()
    if not path.is_dir():
        return load_recipe(path, overrides)
    kept = path / "recipe.yaml"
    if not kept.is_file():
        raise InputError(
            "a folder without a recipe",
            where=path,
            expected="a recipe file, or the folder of a run, which holds a recipe.yaml",
        )
    recipe = load_recipe(kept, overrides)
    if any(override.partition("=")[0].strip() == "output" for override in overrides):
        return recipe
    # The run goes on where it is, wherever it was started from or moved to.
    return recipe.model_copy(update={"output": str(path)})
