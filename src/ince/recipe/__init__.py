"""The typed description of a run: its schema, and the reading of it from YAML or TOML."""

from ince.recipe.load import load_recipe, parse_recipe
from ince.recipe.schema import EvaluateConfig, LoraSection, ModelSection, Recipe

__all__ = [
    "EvaluateConfig",
    "LoraSection",
    "ModelSection",
    "Recipe",
    "load_recipe",
    "parse_recipe",
]
