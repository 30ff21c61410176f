"""Model folders whose weights are in four bits already: what they say, and what was asked for.

bitsandbytes' 4-bit folders are taken as they are, code by code. Every other method is refused
by name: ince quantizes the original itself while loading.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from ince.errors import ModelReferenceError, QuantError
from ince.formats.bitsandbytes_config import METHOD, config_from_bitsandbytes
from ince.models.layout import Layout
from ince.quant import NF4Config

__all__ = ["agreed_quantization", "stored_quantization"]

_SHOWN = 5


def stored_quantization(config: Mapping[str, object], path: Path) -> NF4Config | None:
    """How the weights of a folder are packed, or None where they are not.

    Args:
        config: content of ``config.json``.
        path: of it.

    Raises:
        ModelReferenceError: they are quantized by another method.
        QuantError: bitsandbytes' settings are of no 4-bit format.
    """
    stored = config.get("quantization_config")
    if not stored:
        return None
    method: object = stored
    if isinstance(stored, dict):
        fields = cast("dict[str, object]", stored)
        method = fields.get("quant_method")
        if method == METHOD:
            return config_from_bitsandbytes(fields, where=path)
    raise ModelReferenceError(
        "the weights in this folder are quantized already",
        where=path,
        got=method,
        expected="16-bit or 32-bit weights, which ince quantizes itself while loading; or 4 bits "
        "of bitsandbytes",
        do="use the original model that this one was made from",
    )


def agreed_quantization(
    layout: Layout | None,
    stored: NF4Config,
    asked: NF4Config | None,
    to_pack: frozenset[str],
    folder: Path,
) -> NF4Config:
    """How a folder is packed. Packed weights that are not what was asked for are refused.

    Args:
        layout: of the folder.
        stored: what its config says.
        asked: what the user wants, or None to take the folder as it is.
        to_pack: weights that `asked` would pack.
        folder: for messages.

    Raises:
        ModelReferenceError: the folder has no packed weights, or the model's class wants them
            in another form.
        QuantError: other weights are packed than was asked for, or in another way.
    """
    if layout is None:
        raise ModelReferenceError(
            "packed weights cannot be converted to the form that the model's class has",
            where=folder,
            do="use the original model that this one was made from",
        )
    states = {n: t.packed for n, t in layout.targets.items() if t.packed is not None}
    if not states:
        raise ModelReferenceError(
            "config.json says that the weights are packed, but the files hold none that are",
            where=folder,
            do="config.json and the weights belong to different models; get both again",
        )
    if asked is None:
        # The config does not say everything, and may be wrong; each weight knows.
        state = next(iter(states.values()))
        known = {
            "quant_type": state.quant_type,
            "blocksize": state.blocksize,
            "double_quant": state.nested_offset is not None,
        }
        return stored.model_copy(update=known)
    for name, state in states.items():
        got = (state.quant_type, state.blocksize, state.nested_offset is not None)
        expected = (asked.quant_type, asked.blocksize, asked.double_quant)
        if got != expected:
            raise _otherwise(
                folder,
                f"{name}: quant_type={got[0]}, blocksize={got[1]}, double_quant={got[2]}",
                f"quant_type={expected[0]}, blocksize={expected[1]}, double_quant={expected[2]}",
            )
    different = sorted(states.keys() ^ to_pack)
    if different:
        raise _otherwise(
            folder,
            f"{len(states)} packed weights",
            f"{len(to_pack)}; they differ in {', '.join(different[:_SHOWN])}",
        )
    return asked


def _otherwise(folder: Path, got: str, expected: str) -> QuantError:
    return QuantError(
        "the weights in this folder are packed otherwise than was asked for",
        where=folder,
        got=got,
        expected=expected,
        do="load it without quantization settings, which takes it as it is; or quantize the "
        "original model",
    )
