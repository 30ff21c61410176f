"""`choose`: the next token of each row of a step, each by its own options.

In this order, which is vLLM's: grammar, biases, penalties, temperature, min_p, top_k, top_p among
what is left; then the inverse of the cumulative distribution is read at a uniform number that
belongs to (seed, place in the answer). What a row says depends neither on who shares its step nor
on whether it was taken out and computed again.

Rows that want the likeliest token cost one `argmax` together. A row for which no token can be
chosen, as when an adapter's numbers overflow, gets `NO_TOKEN` and an error, and the others theirs.

Shapes: B rows, S of them drawn, V vocabulary.
"""

import hashlib
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from ince.errors import InceError
from ince.serve.sampling.grammar import GrammarState
from ince.serve.sampling.logprobs import TokenLogprob, token_logprobs
from ince.serve.sampling.options import SamplingOptions

__all__ = ["NO_TOKEN", "RowState", "choose"]

NO_TOKEN = -1
"""Of a row that has an error instead."""

# So many of the likeliest nearly always reach top_p; sorting a whole vocabulary costs far more.
_NUM_LIKELIEST = 1024


class RowState:
    """What the choice of a sequence's next token depends on besides its logits.

    Args:
        options: of the request.
        prompt: its tokens.
        seed: of the random numbers, where the options have none.
    """

    def __init__(self, options: SamplingOptions, prompt: Sequence[int], seed: int) -> None:
        self.options = options
        self.num_tokens = 0
        """Of the answer so far."""
        self.error: InceError | None = None
        """Why no token could be chosen."""
        self._seed = (seed if options.seed is None else options.seed) % 2**64
        self._counts: dict[int, int] = {}
        self._counts_tokens = bool(options.presence_penalty or options.frequency_penalty)
        self._repeats = options.repetition_penalty != 1
        # In order of appearance, each once.
        self._seen: dict[int, None] = dict.fromkeys(prompt) if self._repeats else {}
        self.grammar: GrammarState | None = (
            None if options.grammar is None else options.grammar.start()
        )

    def add(self, token: int) -> None:
        """Take note of a token of the answer."""
        self.num_tokens += 1
        if self._counts_tokens:
            self._counts[token] = self._counts.get(token, 0) + 1
        if self._repeats:
            self._seen[token] = None
        if self.grammar is not None:
            self.grammar.add(token)

    @property
    def is_plain(self) -> bool:
        """Whether it takes the likeliest token by the logits as they are."""
        return self.options.is_greedy and not self.options.changes_logits

    @property
    def is_drawn(self) -> bool:
        """Whether its next token is drawn."""
        return self.error is None and not self.options.is_greedy

    def uniform(self) -> float:
        """In [0, 1): the number of the next token, the same on every machine."""
        drawn = hashlib.blake2b(struct.pack("<QQ", self._seed, self.num_tokens), digest_size=8)
        return (int.from_bytes(drawn.digest(), "little") >> 11) * 2.0**-53

    def change(self, logits_V: Tensor) -> None:
        """Apply grammar, biases and penalties to float32 logits, in place.

        Raises:
            InputError: the grammar's parser gave up.
        """
        options, device = self.options, logits_V.device
        if self.grammar is not None:
            self.grammar.mask(logits_V)
        if options.logit_bias:
            ids = torch.tensor(list(options.logit_bias), device=device)
            logits_V[ids] += torch.tensor(list(options.logit_bias.values()), device=device)
        if self._seen:
            ids = torch.tensor(list(self._seen), device=device)
            old, penalty = logits_V[ids], options.repetition_penalty
            logits_V[ids] = torch.where(old > 0, old / penalty, old * penalty)
        if self._counts:
            ids = torch.tensor(list(self._counts), device=device)
            times = torch.tensor(list(self._counts.values()), device=device, dtype=torch.float32)
            logits_V[ids] -= options.frequency_penalty * times + options.presence_penalty


@torch.no_grad()
def choose(
    logits_BV: Tensor, rows: Sequence[RowState]
) -> tuple[list[int], list[TokenLogprob | None]]:
    """The next token of each row.

    Args:
        logits_BV: of the model; not changed.
        rows: B states, which are not told (`RowState.add` is the caller's).

    Returns:
        The tokens, `NO_TOKEN` for rows whose state now has an error; and what the model thought
        of each, for the rows that ask for it.
    """
    if not rows:
        return [], []
    likeliest_B = logits_BV.argmax(dim=-1)
    # The largest of a row is not finite exactly when one in it is not a number or infinite, or
    # when none can be chosen.
    peak_B1 = logits_BV.gather(-1, likeliest_B[:, None])
    for row, is_sound in zip(rows, torch.isfinite(peak_B1[:, 0]).tolist(), strict=True):
        if not is_sound:
            row.error = InceError(
                "the model's logits are not finite numbers",
                do="check the adapter, or compute in bfloat16 or float32",
            )
    tokens: list[int] = likeliest_B.tolist()
    asked = [b for b, row in enumerate(rows) if row.error is None and not row.is_plain]
    if asked:
        # A copy: log probabilities are of the logits as they came.
        places = torch.tensor(asked, device=logits_BV.device)
        mine_SV = logits_BV[places].to(torch.float32, copy=True)
        for s, b in enumerate(asked):
            if rows[b].options.changes_logits:
                try:
                    rows[b].change(mine_SV[s])
                except InceError as error:
                    rows[b].error = error
        for b, token in zip(asked, mine_SV.argmax(dim=-1).tolist(), strict=True):
            tokens[b] = token
        drawn = [s for s, b in enumerate(asked) if rows[b].is_drawn]
        if len(drawn) < len(asked):
            mine_SV = mine_SV[torch.tensor(drawn, device=mine_SV.device, dtype=torch.long)]
        for s, token in zip(drawn, _draw(mine_SV, [rows[asked[s]] for s in drawn]), strict=True):
            tokens[asked[s]] = token
    for b, row in enumerate(rows):
        if row.error is not None:
            tokens[b] = NO_TOKEN
    return tokens, _logprobs(logits_BV, rows, tokens)


def _draw(logits_SV: Tensor, rows: Sequence[RowState]) -> list[int]:
    """A token of each row, by its temperature and what it cuts off."""
    if not rows:
        return []
    device, options = logits_SV.device, [row.options for row in rows]
    heat = torch.tensor([each.temperature for each in options], device=device)
    # Against the largest, which becomes 0: a small temperature must not overflow.
    logits_SV = (logits_SV - logits_SV.amax(dim=-1, keepdim=True)) / heat[:, None]
    for s, each in enumerate(options):
        if each.min_p > 0:
            # The largest logit is 0, and its exponential 1.
            row_V = logits_SV[s]
            row_V.masked_fill_(row_V.exp() < each.min_p, -torch.inf)
        if 0 < each.top_k < logits_SV.shape[-1]:
            row_V = logits_SV[s]
            row_V.masked_fill_(row_V < row_V.topk(each.top_k).values[-1], -torch.inf)
    chances_SV = logits_SV.softmax(dim=-1)
    for s, each in enumerate(options):
        if each.top_p < 1:
            row_V = chances_SV[s]
            row_V.masked_fill_(row_V < _least_of(row_V, each.top_p), 0)
    # In the order of the vocabulary: by likelihood, rounding would make neighbors change places,
    # and with them the token that a number falls on.
    reached_SV = chances_SV.cumsum(dim=-1, dtype=torch.float64)
    total_S1 = reached_SV[:, -1:]
    uniforms = [row.uniform() for row in rows]
    drawn_S1 = torch.tensor(uniforms, dtype=torch.float64, device=device)[:, None] * total_S1
    # A product may round up to the total, beyond which there is no token.
    below_S1 = torch.nextafter(total_S1, torch.zeros_like(total_S1))
    found: list[int] = torch.searchsorted(reached_SV, drawn_S1.minimum(below_S1), right=True)[
        :, 0
    ].tolist()
    return found


def _least_of(chances_V: Tensor, top_p: float) -> Tensor:
    """The probability of the last token that is kept.

    A token is kept while those before it have not reached top_p; the first always is.
    """
    num = min(_NUM_LIKELIEST, len(chances_V))
    ordered = chances_V.topk(num).values.double()
    reached = ordered.cumsum(dim=-1)
    if num < len(chances_V) and bool(reached[-1] < top_p):
        ordered = chances_V.sort(descending=True).values.double()
        reached = ordered.cumsum(dim=-1)
    num_kept = int((reached - ordered < top_p).sum())
    return ordered[num_kept - 1].to(chances_V.dtype)


def _logprobs(
    logits_BV: Tensor, rows: Sequence[RowState], tokens: Sequence[int]
) -> list[TokenLogprob | None]:
    found: list[TokenLogprob | None] = [None] * len(rows)
    wanted = {
        b: row.options.logprobs
        for b, row in enumerate(rows)
        if row.options.logprobs is not None and tokens[b] != NO_TOKEN
    }
    if wanted:
        places = torch.tensor(list(wanted), device=logits_BV.device)
        most = max(wanted.values())
        mine = token_logprobs(logits_BV[places], [tokens[b] for b in wanted], most)
        for (b, num), each in zip(wanted.items(), mine, strict=True):
            found[b] = each._replace(top=each.top[:num])
    return found
