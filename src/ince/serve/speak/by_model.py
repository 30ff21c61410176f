"""`ModelSpeaker`: the model itself, with adapters in it, by `ince.infer`.

Slower to switch and computing every turn anew, but it takes every model and adapter that ince does.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ince.infer import Turn, stream
from ince.lora import PeftModel
from ince.serve.speak.speaker import AnswerOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ModelSpeaker"]


class ModelSpeaker:
    """Answers by the model itself; see `Speaker`.

    Args:
        model: the base; adapters are put into it, and stay.
        tokenizer: its own.
    """

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._adapted: PeftModel | None = None
        self._names: dict[Path, str] = {}

    def load(self, adapter: Path) -> None:
        """See `Speaker`."""
        if adapter in self._names:
            return
        name = f"adapter-{len(self._names)}"
        if self._adapted is None:
            self._adapted = PeftModel.from_pretrained(self._model, adapter, adapter_name=name)
        else:
            self._adapted.load_adapter(adapter, name)
        self._adapted.eval()
        self._names[adapter] = name

    def answer(
        self, conversation: Sequence[Turn], adapter: Path | None, options: AnswerOptions
    ) -> Iterator[str]:
        """See `Speaker`."""
        if adapter is not None:
            self.load(adapter)
        with ExitStack() as inside:
            if self._adapted is not None and adapter is None:
                inside.enter_context(self._adapted.disable_adapter())
            elif self._adapted is not None and adapter is not None:
                self._adapted.set_adapter(self._names[adapter], inference_mode=True)
            # The base inside carries the adapter's layers: it generates with them.
            yield from stream(
                self._model,
                self._tokenizer,
                conversation,
                max_new_tokens=options.max_new_tokens,
                temperature=options.temperature,
                top_p=options.top_p,
                seed=options.seed,
            )

    def close(self) -> None:
        """See `Speaker`; adapters that were loaded stay in the model."""
