"""NEFTune: uniform noise on the input embeddings, in training only.

Each entry of a document's embeddings gets noise from U(−1, 1) · α / √(L · D), L tokens long and
D wide, so that the noise of a document has about the same length whatever L is. L is the
document's own, never the row's: a short document in a packed row gets what it would get alone.
Tokens that several documents share get the noise of the longest of them, which is the least.

The noise is a function of the seed, the step and the micro-batch, drawn apart from the global
random numbers: dropout is the same with and without it, and a resumed run draws the same.

Source: arXiv:2310.05914.

Shapes: B rows, L places, S segments in a row, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ince.data import Batch
from ince.errors import TrainingError

__all__ = ["document_lengths", "embedding_noise"]


def document_lengths(batch: Batch) -> Tensor:
    """(B, L) int64: tokens of the document that each token is of; 0 on padding.

    Where a token is of several documents, of the longest.
    """
    rows, num_segments = len(batch.segment_ids), batch.sees.shape[1]
    # Of the documents that end in a segment, the length is its last position and one.
    ends_BS = batch.position_ids.new_zeros(rows, num_segments).scatter_reduce_(
        1, batch.segment_ids, batch.position_ids + 1, reduce="amax"
    )
    # sees[i, j]: segment i continues j, so a document that ends in i has the tokens of j.
    lengths_BS = (ends_BS[:, :, None] * batch.sees).amax(dim=1)
    lengths_BL = lengths_BS.gather(1, batch.segment_ids)
    return lengths_BL.masked_fill(batch.segment_ids == 0, 0)


@contextmanager
def embedding_noise(model: nn.Module, batch: Batch, *, alpha: float, seed: int) -> Iterator[None]:
    """Inside, a forward of `model` on `batch` sees noisy embeddings.

    Args:
        model: a causal language model of transformers, with or without adapters.
        batch: on the model's device.
        alpha: α; the paper uses 5, 10 and 15.
        seed: of the noise.

    Raises:
        TrainingError: the model does not say which of its modules embeds the tokens.
    """
    find: Any = getattr(model, "get_input_embeddings", None)
    embeddings = find() if find is not None else None
    if not isinstance(embeddings, nn.Module):
        raise TrainingError(
            "the model has no input embeddings to add noise to",
            got=type(model).__name__,
            do="leave train.neftune_alpha out",
        )
    lengths_BL = document_lengths(batch)

    def add(_module: nn.Module, _inputs: object, output_BLD: Tensor) -> Tensor:
        generator = torch.Generator(output_BLD.device).manual_seed(seed)
        noise_BLD = torch.rand(
            output_BLD.shape, generator=generator, device=output_BLD.device, dtype=torch.float32
        )
        width = output_BLD.shape[-1]
        scale_BL = alpha * (lengths_BL * width).float().rsqrt()
        scale_BL = scale_BL.masked_fill(lengths_BL == 0, 0.0)
        noise_BLD.mul_(2).sub_(1).mul_(scale_BL[..., None])
        return output_BLD + noise_BLD.to(output_BLD.dtype)

    handle = embeddings.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
