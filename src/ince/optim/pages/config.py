"""How much optimizer state each tier may hold.

The section `pages` of a recipe, and the argument of the optimizers that page.
"""

from pathlib import Path
from typing import Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    field_validator,
    model_validator,
)

from ince.errors import InputError
from ince.mistakes import name_all_mistakes
from ince.units import format_bytes, parse_bytes

__all__ = ["MIN_PAGE_BYTES", "PagesConfig"]

MIN_PAGE_BYTES = 4096
"""What disks and systems move at least; a block of 256 elements has to fit, too."""

_SECTION = ConfigDict(
    extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
)


class PagesConfig(BaseModel):
    """Budgets of the three tiers, from the quickest to the slowest.

    State goes to the first tier that has room for it. Amounts may be written ``256MiB``.

    Raises:
        ConfigError: an option is unknown or cannot be; all of them are named.
    """

    model_config = _SECTION

    device: int | None = Field(default=0, ge=0)
    """Bytes of state on the accelerator that the parameters are on. None: as much as there is.
    Parameters on a CPU have no other device than memory: there, it adds to `memory`."""

    memory: int | None = Field(default=None, ge=0)
    """Bytes of state in memory, pinned where an accelerator reads it. None: as much as there
    is. The pages in transit between memory and file count: at 0 it is only those, four pages."""

    file: int | None = Field(default=None, ge=0)
    """Bytes of state in a file. None: as much as is left over; the file takes its place on the
    disk before the first step. 0: no file."""

    page_bytes: int = Field(default=4 * 2**20, ge=MIN_PAGE_BYTES)
    """Size of a page: what is moved at once."""

    directory: Path | None = None
    """Where the file is made; on a disk, as a file system in memory saves no memory. It has no
    name there, and is gone with the process. None: TMPDIR where it is set, else /var/tmp."""

    @field_validator("device", "memory", "file", "page_bytes", mode="before")
    @classmethod
    def _in_units(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return parse_bytes(value)
        except InputError as error:
            raise ValueError(error.what) from error

    @model_validator(mode="after")
    def _holds_a_page(self) -> Self:
        for tier in ("device", "memory", "file"):
            budget: int | None = getattr(self, tier)
            if budget is not None and 0 < budget < self.page_bytes:
                raise ValueError(
                    f"{tier}: {format_bytes(budget)} is less than one page of "
                    f"{format_bytes(self.page_bytes)}; give 0, or at least a page"
                )
        if self.device == self.memory == self.file == 0:
            raise ValueError("no tier may hold anything")
        return self

    # After the other one, so that what that one finds is reported as well.
    @model_validator(mode="wrap")
    @classmethod
    def _report_all_mistakes(cls, data: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        return name_all_mistakes(cls, data, handler, what="the pages have mistakes", whole="pages")
