"""`KnownSplits`: data encoded once for the many runs of a search that read them alike."""

from typing import TYPE_CHECKING

from ince.data import DataConfig, Split, load_split
from ince.recipe import Recipe
from ince.recipe.session import ReadSplit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ince.data.dataset import Progress

__all__ = ["KnownSplits"]


# Ways of reading that take turns in a sweep over a key of `data`.
_MAX_KEPT = 4


class KnownSplits:
    """The splits of the models and data sections that were asked for last; others are dropped."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, Split]] = {}

    def reader(self, recipe: Recipe) -> ReadSplit:
        """What reads a split of `recipe`, like `load_split`, or knows it."""
        model = recipe.model
        key = f"{model.base}\n{model.revision}\n{recipe.data.model_dump_json()}"
        splits = self._known.pop(key, {})
        self._known[key] = splits
        while len(self._known) > _MAX_KEPT:
            del self._known[next(iter(self._known))]

        def read(
            path: str,
            config: DataConfig,
            tokenizer: "PreTrainedTokenizerBase",
            *,
            progress: "Progress | None" = None,
        ) -> Split:
            if path not in splits:
                splits[path] = load_split(path, config, tokenizer, progress=progress)
            return splits[path]

        return read
