"""One request as the scheduler sees it: its tokens, how far they are computed, what it holds."""

import enum
from typing import Any

from ince.serve.engine.blocks import BLOCK_SIZE
from ince.serve.engine.prefix import PrefixKeys

__all__ = ["SequenceState", "Stage"]


class Stage(enum.Enum):
    """Where a sequence is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"


class SequenceState:
    """The mutable state of a sequence.

    Attributes:
        tokens: the prompt, then what was generated.
        num_computed: tokens whose keys and values are in the blocks.
        blocks: in the order of the tokens.
        cached_tokens: of the prompt, found in the cache when the sequence was first admitted.
        adapter: digest; None for the base.
        held: what was acquired of the adapter, while the sequence runs.
        arrival: a number that grows; who came first.
        owner: what the engine knows besides.
    """

    __slots__ = (
        "adapter",
        "arrival",
        "blocks",
        "cached_tokens",
        "charged",
        "deadline",
        "every_logit",
        "held",
        "keys",
        "last_step",
        "max_tokens",
        "num_computed",
        "num_prompt",
        "owner",
        "passed",
        "passed_since",
        "stage",
        "tenant",
        "tokens",
    )

    def __init__(
        self,
        prompt: "list[int] | tuple[int, ...]",
        *,
        max_tokens: int,
        tenant: str = "",
        adapter: str | None = None,
        salt: str = "",
        deadline: float | None = None,
        every_logit: bool = False,
        owner: Any = None,
    ) -> None:
        """Args:
        prompt: at least one token.
        max_tokens: that may be generated.
        salt: keeps prefixes apart beyond tenant and adapter.
        deadline: on the scheduler's clock.
        every_logit: logits are wanted at every place of the prompt, so no prefix is reused.
        """
        self.tokens = list(prompt)
        self.num_prompt = len(self.tokens)
        self.max_tokens = max_tokens
        self.tenant = tenant
        self.adapter = adapter
        self.deadline = deadline
        self.every_logit = every_logit
        self.owner = owner
        self.keys = PrefixKeys(tenant, salt, adapter)
        self.stage = Stage.WAITING
        self.arrival = -1
        self.num_computed = 0
        self.blocks: list[int] = []
        self.cached_tokens: int | None = None
        self.charged = False
        self.held: Any = None
        self.last_step = 0
        # How often others went ahead because this one's adapter had no slot, and since when.
        self.passed = 0
        self.passed_since = 0.0

    @property
    def num_left(self) -> int:
        """Tokens whose keys and values are still to be computed: 1 while decoding."""
        return len(self.tokens) - self.num_computed

    @property
    def num_generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.num_prompt

    @property
    def most_tokens(self) -> int:
        """Tokens of the whole once all that may be generated is there."""
        return self.num_prompt + self.max_tokens

    @property
    def num_reusable_blocks(self) -> int:
        """Full blocks that could come from the cache: the last token is always computed."""
        return 0 if self.every_logit else (len(self.tokens) - 1) // BLOCK_SIZE
