"""What a token is written as, alone: for the log-probabilities of an answer.

A token's text in an answer depends on its neighbors; here each stands for itself. Its bytes are
those that it adds, which need not be whole characters.
"""

from typing import TYPE_CHECKING

from transformers.convert_slow_tokenizer import bytes_to_unicode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TokenTexts"]

_WORD_START = "▁"


class TokenTexts:
    """Texts of tokens, each computed once.

    Args:
        tokenizer: of the base.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._is_byte_level = "ByteLevel" in str(getattr(backend, "decoder", ""))
        self._added = tokenizer.added_tokens_decoder
        self._bytes: dict[int, bytes] = {}

    def bytes_of(self, token: int) -> bytes:
        """The bytes of `token`; of a special token, those of its name."""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self._find(token)
        return found

    def text_of(self, token: int) -> str:
        r"""Its text; where its bytes are no characters, ``bytes:\xNN…`` as OpenAI writes it."""
        data = self.bytes_of(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _find(self, token: int) -> bytes:
        added = self._added.get(token)
        if added is not None:
            return str(added.content).encode("utf-8", "replace")
        name: object = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(name, str):
            return b""  # an embedding's padding rows have no names
        if self._is_byte_level and all(character in self._byte_of for character in name):
            return bytes(self._byte_of[character] for character in name)
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            return bytes([int(name[3:5], 16)])
        return name.replace(_WORD_START, " ").encode("utf-8", "replace")
