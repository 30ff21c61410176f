"""How a step is cut into forwards, and since when: what bit-exact resuming has to know.

The same rows cut another way give the same gradient but for rounding, so a run that goes on
must cut as it did. Each change is written down when it happens, with the step it begins at,
not only with the next checkpoint: a run that was killed in between repeats its steps, and its
cuts.

    checkpoints/micro_batches.json
      {"recipe_digest", "limit_bytes", "cuts": [{"step", "micro_batch_tokens"}, …]}
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from ince.data import Row
from ince.errors import InceError
from ince.files import read_json, write_json
from ince.train.step import micro_batches

__all__ = ["Cut", "Cuts", "halved", "shape_of"]

# As `accumulate` collates.
_PADDED_TO = 64


@dataclass(frozen=True)
class Cut:
    """From `step` on, counted from 0, a forward has at most so many tokens; None: no limit."""

    step: int
    micro_batch_tokens: int | None


class Cuts:
    """The cuts of a run, the earliest first, as they are on disk."""

    def __init__(
        self, run_dir: Path, *, recipe_digest: str, limit_bytes: int | None, cuts: Sequence[Cut]
    ) -> None:
        self._path = _path(run_dir)
        self._recipe_digest = recipe_digest
        self.limit_bytes = limit_bytes
        self.cuts = list(cuts)

    @classmethod
    def read(cls, run_dir: Path, *, recipe_digest: str) -> "Cuts | None":
        """Those of an earlier sitting; None when there are none that can be read."""
        try:
            content = read_json(_path(run_dir))
        except InceError:
            return None
        limit, cuts = content.get("limit_bytes"), content.get("cuts")
        if content.get("recipe_digest") != recipe_digest or not isinstance(cuts, list):
            return None
        try:
            found = [Cut(**each) for each in cast("list[dict[str, int]]", cuts)]
        except TypeError:
            return None
        numbers = [limit, *(each.micro_batch_tokens for each in found)]
        if not found or found[0].step != 0 or not all(_is_count(n) for n in numbers):
            return None
        return cls(
            run_dir,
            recipe_digest=recipe_digest,
            limit_bytes=cast("int | None", limit),
            cuts=found,
        )

    def at(self, step: int) -> int | None:
        """Tokens in one forward of `step`, at most."""
        return [cut for cut in self.cuts if cut.step <= step][-1].micro_batch_tokens

    def add(self, step: int, micro_batch_tokens: int | None) -> None:
        """Cut so from `step` on. What was to come later is dropped: it was of another past."""
        self.cuts = [cut for cut in self.cuts if cut.step < step]
        self.cuts.append(Cut(step, micro_batch_tokens))

    def save(self) -> None:
        """Write them whole.

        Raises:
            DiskFullError: no space.
        """
        write_json(
            self._path,
            {
                "recipe_digest": self._recipe_digest,
                "limit_bytes": self.limit_bytes,
                "cuts": [asdict(cut) for cut in self.cuts],
            },
        )


def _path(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "micro_batches.json"


def _is_count(value: object) -> bool:
    return value is None or (isinstance(value, int) and value > 0)


def shape_of(group: Sequence[Row]) -> tuple[int, int]:
    """Rows and padded length of the rectangle that `group` makes."""
    longest = max(row.num_tokens for row in group)
    return len(group), -(-longest // _PADDED_TO) * _PADDED_TO


def halved(rows: Sequence[Row], micro_batch_tokens: int | None) -> int | None:
    """Half of the largest forward that `rows` make now; None when each has one row already."""
    groups = [g for g in micro_batches(rows, micro_batch_tokens) if len(g) > 1]
    if not groups:
        return None
    return max(len(group) * max(row.num_tokens for row in group) for group in groups) // 2
