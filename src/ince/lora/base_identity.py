"""Which base a model is, where its files say so: their digest, noted on it.

An adapter that was trained on one base is wrong on another of the same shape, and nothing would
show it. So what loads a model from files notes where it came from, adapters carry the digest of
their base's weights in a file beside PEFT's two, and the two are compared. A model without a
note is whatever it is: then nothing is compared.
"""

from typing import Protocol, cast

from torch import nn

from ince.errors import AdapterError

__all__ = ["Origin", "base_digest", "check_base_digest", "forget_origin", "note_origin"]

_ATTRIBUTE = "_ince_origin"


class Origin(Protocol):
    """Where a model came from."""

    @property
    def weights_digest(self) -> object:
        """Of the files with its weights, in hex; may be computed when asked for."""
        ...


def note_origin(model: nn.Module, origin: Origin) -> None:
    """Remember on `model` where it came from."""
    setattr(model, _ATTRIBUTE, origin)


def base_digest(model: nn.Module) -> str | None:
    """The digest of the weights that `model` was loaded with, where that was noted."""
    origin = cast("Origin | None", vars(model).get(_ATTRIBUTE))
    return None if origin is None else str(origin.weights_digest)


def forget_origin(model: nn.Module) -> None:
    """For a copy whose weights are others."""
    vars(model).pop(_ATTRIBUTE, None)


def check_base_digest(model: nn.Module, digest: str | None, *, where: object) -> None:
    """Refuse an adapter of another base.

    Args:
        model: the base.
        digest: of the base that the adapter was trained on, where it is known.
        where: the adapter's folder.

    Raises:
        AdapterError: both digests are known, and differ.
    """
    if digest is None:
        return
    mine = base_digest(model)
    if mine is not None and digest != mine:
        raise AdapterError(
            "the adapter was trained on another base",
            where=where,
            got=f"a base whose weights have digest {mine}",
            expected=f"digest {digest}",
            do="load it on the base it was trained on; to use it here all the same, remove its "
            "ince.json",
        )
