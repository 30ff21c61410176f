"""The section `pages` of a recipe: what optimizer state each tier may hold, or `auto`.

`auto` takes what there is. With a limit (`train.memory`, or what is free on a GPU) that is what
the worst forward and backward leave below it, which the memory guard finds out before step 1
(`ince.train.page_budget`); without one it is everything.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ince.errors import ConfigError, InputError
from ince.optim import PagesConfig
from ince.units import parse_bytes

__all__ = ["PagesSection"]

Amount = int | Literal["auto"]


class PagesSection(BaseModel):
    """Amounts are bytes, may be written ``256MiB``, and ``auto`` is as much as there is."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    device: Amount = Field(default=0, union_mode="left_to_right")
    """Of state on the accelerator. On a CPU it adds to `memory`."""

    memory: Amount = Field(default="auto", union_mode="left_to_right")
    """Of state in memory. At 0 it is only the four pages that are on their way."""

    file: Amount = Field(default="auto", union_mode="left_to_right")
    """Of the file: two and a half times the state in it, in float32. 0: no file."""

    page_bytes: int = 4 * 2**20
    """Size of a page: what is moved at once."""

    directory: str | None = Field(default=None, min_length=1)
    """Where the file is made; it has no name there. None: the run's folder."""

    @field_validator("device", "memory", "file", "page_bytes", mode="before")
    @classmethod
    def _in_units(cls, value: object) -> object:
        if not isinstance(value, str) or value == "auto":
            return value
        try:
            return parse_bytes(value)
        except InputError as error:
            raise ValueError(f"{error.what}: {value!r}; write it as in 256MiB, or auto") from error

    @model_validator(mode="after")
    def _possible(self) -> Self:
        try:
            self.to_config(Path())
        except ConfigError as error:
            raise ValueError("; ".join(str(problem) for problem in error.problems)) from error
        return self

    def to_config(self, folder: Path) -> PagesConfig:
        """Budgets as the optimizer takes them; the file is made in `folder` if not elsewhere.

        Raises:
            ConfigError: they cannot be.
        """

        def amount(value: Amount) -> int | None:
            return None if value == "auto" else value

        return PagesConfig(
            device=amount(self.device),
            memory=amount(self.memory),
            file=amount(self.file),
            page_bytes=self.page_bytes,
            directory=folder if self.directory is None else Path(self.directory).expanduser(),
        )
