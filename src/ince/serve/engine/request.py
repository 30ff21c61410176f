"""`GenerationRequest`: what one answer is asked for. It says everything; nothing is looked up."""

from dataclasses import dataclass

from ince.errors import InputError
from ince.serve.sampling import SamplingOptions

__all__ = ["GenerationRequest"]


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt, and how it is to be answered.

    Attributes:
        request_id: for logs; need not be unique.
        prompt: token ids, at least one.
        options: of the choice of tokens.
        adapter: digest of the adapter; None for the base.
        tenant: whose it is: for fairness, and so that nobody meets another's cache.
        deadline: on `time.monotonic`'s clock; None for none.
        cache_salt: prefixes are shared only between requests that have the same.

    Raises:
        InputError: the prompt is empty, or has something else than token ids.
    """

    request_id: str
    prompt: tuple[int, ...]
    options: SamplingOptions
    adapter: str | None = None
    tenant: str = ""
    deadline: float | None = None
    cache_salt: str = ""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise InputError("a prompt needs a token at least", where=self.request_id)
        for token in self.prompt:
            if type(token) is not int or token < 0:
                raise InputError("a prompt consists of token ids", where=self.request_id, got=token)
