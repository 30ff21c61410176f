"""A proof at the start: a model says in the engine what it says alone.

Which layers a model has and what they ask of attention was looked at by name (`layer_shapes`). What
no name tells is compared here: two short sequences, read in parts and side by side through the
pools, against the model's own forward of each.
"""

from typing import Any

import torch
from torch import Tensor

from ince.errors import ProofError
from ince.serve.engine.blocks import BLOCK_SIZE
from ince.serve.engine.forward import PagedForward
from ince.serve.engine.schedule import StepRow
from ince.serve.engine.sequence import SequenceState

__all__ = ["prove"]

# Of the largest logit. Sums in another order differ by less; a wrong mask by far more.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 2e-3}
_TOLERANCE = 0.1


def prove(model: Any, forward: PagedForward, num_blocks: int) -> None:
    """Compare the engine's logits with the model's own.

    Args:
        model: not yet given to the engine.
        forward: of the engine, not open.
        num_blocks: of its pools, which this overwrites.

    Raises:
        ProofError: they differ by more than rounding.
    """
    embeddings = model.get_input_embeddings().weight
    limit = _limit(model)
    num_tokens = embeddings.shape[0]
    lengths = (BLOCK_SIZE + 5, 7) if num_blocks > 2 else (BLOCK_SIZE - 1,)
    step = max(1, num_tokens // 29)
    prompts = [
        [(place * step + row) % num_tokens for place in range(length)]
        for row, length in enumerate(lengths)
    ]
    with torch.inference_mode():
        own = [
            model(
                input_ids=torch.tensor([prompt], device=embeddings.device), use_cache=False
            ).logits[0, -1]
            for prompt in prompts
        ]
    forward.open()
    try:
        ours = _last_logits(forward, prompts)
    finally:
        forward.release()
    for alone, here in zip(own, ours, strict=True):
        scale = float(alone.float().abs().max()) + 1e-6
        difference = float((alone.float() - here.float()).abs().max()) / scale
        if not difference <= limit:
            raise ProofError(
                "the model's logits are others in the engine than alone",
                where=type(model).__name__,
                got=f"a difference of {difference:.2g} of the largest",
                expected=f"{limit:g} at most",
                do="this model's class does something with attention that the engine does not",
            )


def _limit(model: Any) -> float:
    """By the coarsest type that the model multiplies in: 4-bit layers have one of their own."""
    own = {getattr(module, "compute_dtype", None) for module in model.modules()}
    dtypes = {each for each in own if isinstance(each, torch.dtype)}
    dtypes.add(model.get_input_embeddings().weight.dtype)
    return max(_TOLERANCES.get(each, _TOLERANCE) for each in dtypes)


def _last_logits(forward: PagedForward, prompts: list[list[int]]) -> list[Tensor]:
    """The last logits of each, read in two steps that all prompts share."""
    sequences = [SequenceState(prompt, max_tokens=1) for prompt in prompts]
    # Blocks in an order that is not theirs, so that a table that is ignored shows.
    blocks = list(range(sum(-(-len(prompt) // BLOCK_SIZE) for prompt in prompts)))[::-1]
    for sequence in sequences:
        count = -(-len(sequence.tokens) // BLOCK_SIZE)
        sequence.blocks, blocks = blocks[:count], blocks[count:]
    first = [StepRow(s, 0, max(1, len(s.tokens) // 2)) for s in sequences]
    forward.run(first)
    rest = [StepRow(r.sequence, r.count, len(r.sequence.tokens) - r.count) for r in first]
    wanted = forward.run(rest)
    return [wanted.of(i)[-1] for i in range(len(rest))]
