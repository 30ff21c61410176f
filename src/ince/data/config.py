"""What a recipe says about its data. The reading itself is in `dataset`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["DataConfig", "LossOn", "OnBadRow", "ShapeChoice", "Truncation"]

ShapeChoice = Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "text"]
LossOn = Literal["assistant", "last", "all"]
Truncation = Literal["right", "drop"]
OnBadRow = Literal["error", "drop"]


class DataConfig(BaseModel):
    """The ``data:`` section of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: str
    """File to train on: .jsonl, .json, .csv, .tsv, .parquet or .txt."""

    eval: str | None = None
    """File to evaluate on, never trained on."""

    format: ShapeChoice = "auto"
    """Form of the rows; ``auto`` finds it out and says which one it saw."""

    max_length: int = Field(default=1024, ge=2)
    """Most tokens in one example, and in one packed row."""

    packing: bool = True
    """Several examples share a row, and do not see each other."""

    loss_on: LossOn = "assistant"
    """Which tokens are learnt: those of every assistant turn, of the last one, or all.

    A turn's stop token belongs to it. Plain text has no turns: all of it is learnt.
    """

    system: str | None = None
    """System message for conversations that bring none of their own."""

    truncation: Truncation = "right"
    """What happens to an example longer than `max_length`: cut at the end, or left out."""

    on_bad_row: OnBadRow = "error"
    """A row that cannot be used stops the run, or is left out and counted."""
