"""What a recipe says about its data. The reading itself is in `dataset`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["DataConfig", "LossOn", "OnBadRow", "ShapeChoice", "Truncation"]

ShapeChoice = Literal[
    "auto", "messages", "sharegpt", "alpaca", "prompt-completion", "plain-completion", "text"
]
LossOn = Literal["assistant", "last", "completion", "all"]
Truncation = Literal["right", "left", "split", "drop"]
OnBadRow = Literal["error", "drop"]


class DataConfig(BaseModel):
    """The ``data:`` section of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: str
    """File to train on: .jsonl, .json, .csv, .tsv, .parquet or .txt."""

    eval: str | None = None
    """File to evaluate on, never trained on."""

    format: ShapeChoice = "auto"
    """Form of the rows; ``auto`` finds it out and says which one it saw.

    ``plain-completion`` is never found: it reads the rows of ``prompt-completion`` without the
    chat template, the completion right behind the prompt.
    """

    max_length: int = Field(default=1024, ge=2)
    """Most tokens in one example, and in one packed row."""

    packing: bool = True
    """Several examples share a row, and do not see each other."""

    share_beginnings: bool = True
    """Examples of a row that begin alike, with a system message for instance, have these tokens
    once, and all of them see it. FlashAttention cannot: it wants false."""

    loss_on: LossOn = "assistant"
    """Which tokens are learnt: those of every assistant turn, of the last one, of the completion
    (in rows of prompt and completion), or all.

    A turn's stop token belongs to it. Plain text has no turns: all of it is learnt.
    """

    system: str | None = None
    """System message for conversations that bring none of their own."""

    truncation: Truncation = "right"
    """What happens to a row longer than `max_length`.

    ``right`` cuts its end. ``left`` keeps the end and the system message, and begins with a
    user's turn; of one exchange that is too long by itself it cuts the beginning of the
    question. ``split`` makes several examples of it, cut between exchanges, each with the
    system message; text is cut into consecutive windows. ``drop`` leaves it out. What each
    loses is counted.
    """

    on_bad_row: OnBadRow = "error"
    """A row that cannot be used stops the run, or is left out and counted."""
