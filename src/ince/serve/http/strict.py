"""How bodies are read: no unknown fields, no guessed types, no text that is no Unicode."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = ["Finite", "Strict", "Text", "TokenId"]


class Strict(BaseModel):
    """A body, or a part of one: ``"5"`` is no number, and a misspelt field is a mistake."""

    model_config = ConfigDict(
        extra="forbid", strict=True, populate_by_name=True, protected_namespaces=()
    )


def _is_unicode(text: str) -> str:
    # JSON can write half of a surrogate pair, which no tokenizer takes and no answer can hold.
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair is no character") from None
    return text


Text = Annotated[str, AfterValidator(_is_unicode)]
"""Any text that UTF-8 can say."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
