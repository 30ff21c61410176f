"""Which base a model is, where its files say so: a digest that travels with it.

An adapter that was trained on one base is wrong on another of the same shape, and nothing would
show it. So what loads a model from files notes their digest on it, adapters carry the digest of
their base in a file beside PEFT's two, and the two are compared. A model without a note is
whatever it is: then nothing is compared.
"""

from torch import nn

from ince.errors import AdapterError

__all__ = ["base_digest", "check_base_digest", "forget_base_digest", "note_base_digest"]

_ATTRIBUTE = "_ince_base_digest"


def note_base_digest(model: nn.Module, digest: str) -> None:
    """Remember on `model` which files it was loaded from."""
    setattr(model, _ATTRIBUTE, digest)


def base_digest(model: nn.Module) -> str | None:
    """What was noted, or None."""
    return vars(model).get(_ATTRIBUTE)


def forget_base_digest(model: nn.Module) -> None:
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
    mine = base_digest(model)
    if digest is not None and mine is not None and digest != mine:
        raise AdapterError(
            "the adapter was trained on another base",
            where=where,
            got=f"a base with digest {mine}",
            expected=f"digest {digest}",
            do="load it on the base it was trained on; to use it here all the same, remove its "
            "ince.json",
        )
