"""What a run trains, beside its base: an adapter on it, or every weight of a copy.

Both train, answer, are compared with the base and leave a folder in the run's. Of an adapter the
base is the same model with the adapter off; of a whole model it is loaded once more, when
training is over and its gradients and optimizer are gone.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import nn

from ince.errors import InputError
from ince.files import sha256_file
from ince.heap import give_back
from ince.lora import PeftModel, get_peft_model
from ince.models import resolve
from ince.publish import model_to_folder
from ince.quant import packed_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ince.recipe.schema import LoraSection

__all__ = ["AdapterTuned", "FullTuned", "Tuned"]

Side = tuple[str, AbstractContextManager["PreTrainedModel"]]


class Tuned(Protocol):
    """Of one run."""

    @property
    def section(self) -> str:
        """Of the record, and the result's folder in the run's."""
        ...

    @property
    def model(self) -> nn.Module:
        """The one that takes gradients."""
        ...

    @property
    def plain(self) -> "PreTrainedModel":
        """The one that reads and answers: transformers' own, as trained."""
        ...

    @property
    def num_base(self) -> int:
        """Parameters of the base."""
        ...

    @property
    def facts(self) -> dict[str, object]:
        """For the record, before training."""
        ...

    def sides(self) -> Iterator[Side]:
        """``base`` and ``tuned``, one after the other; inside, each is the model to ask."""
        ...

    def save(self, folder: Path, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Write the result into `folder`, whole; returns a digest of its weights."""
        ...


class AdapterTuned:
    """An adapter on a frozen base."""

    section = "adapter"

    def __init__(self, base: "PreTrainedModel", lora: "LoraSection", *, name: str) -> None:
        """Attach it.

        Args:
            base: frozen.
            lora: of the recipe.
            name: of the base, recorded in the adapter.

        Raises:
            AdapterError, ConfigError: the section does not fit the base.
        """
        self.peft: PeftModel = get_peft_model(base, lora.to_lora_config(base_model=name))
        self._lora = lora

    @property
    def model(self) -> nn.Module:
        """With the adapter around."""
        return self.peft

    @property
    def plain(self) -> "PreTrainedModel":
        """The base inside, which carries the adapter's layers."""
        return cast("PreTrainedModel", self.peft.get_base_model())

    @property
    def num_base(self) -> int:
        """Parameters, as if they were not packed."""
        num_trainable, num_total = self.peft.get_nb_trainable_parameters()
        return num_total - num_trainable

    @property
    def facts(self) -> dict[str, object]:
        """Rank, scale and size."""
        num_trainable, num_total = self.peft.get_nb_trainable_parameters()
        return {
            "r": self._lora.r,
            "alpha": self._lora.alpha,
            "target_modules": self._lora.target_modules,
            "num_trainable": num_trainable,
            "num_total": num_total,
        }

    def sides(self) -> Iterator[Side]:
        """The adapter off, then on."""
        yield "base", self._without()
        give_back()
        yield "tuned", nullcontext(self.plain)
        give_back()

    @contextmanager
    def _without(self) -> Iterator["PreTrainedModel"]:
        with self.peft.disable_adapter():
            yield self.plain

    def save(self, folder: Path, tokenizer: "PreTrainedTokenizerBase") -> str:  # noqa: ARG002
        """In PEFT's format."""
        self.peft.save_pretrained(folder)
        return sha256_file(folder / "adapter_model.safetensors")


class FullTuned:
    """Every weight of a model."""

    section = "model"

    def __init__(
        self,
        model: "PreTrainedModel",
        load_base: Callable[[], "PreTrainedModel"],
        *,
        name: str,
    ) -> None:
        """Let its weights learn; what is tied is one weight.

        Args:
            model: as the base is.
            load_base: gives the base once more.
            name: of the base, for messages.

        Raises:
            InputError: the base is packed.
        """
        packed = packed_modules(model)
        if packed:
            raise InputError(
                "packed weights cannot learn",
                where=name,
                got=f"{len(packed)} layers in 4 bits, and train.method: full",
                do="name a base in 16 bits, or train an adapter: method: lora",
            )
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        self._model = model
        self._load_base = load_base
        self._base: PreTrainedModel | None = None

    @property
    def model(self) -> nn.Module:
        """The model itself."""
        return self._model

    @property
    def plain(self) -> "PreTrainedModel":
        """The same."""
        return self._model

    @property
    def num_base(self) -> int:
        """As many as learn."""
        return sum(p.numel() for p in self._model.parameters())

    @property
    def facts(self) -> dict[str, object]:
        """Size and type."""
        learn = [p.numel() for p in self._model.parameters() if p.requires_grad]
        return {
            "method": "full",
            "num_trainable": sum(learn),
            "num_total": self.num_base,
            "dtype": _name_of(self._model.dtype),
        }

    def sides(self) -> Iterator[Side]:
        """The base, loaded at the first call and held until `forget_base`; then the model."""
        if self._base is None:
            self._base = self._load_base()
        yield "base", nullcontext(self._base)
        give_back()
        yield "tuned", nullcontext(self._model)
        give_back()

    def forget_base(self) -> None:
        """Let go of it, where it was loaded."""
        self._base = None
        give_back()

    def save(self, folder: Path, tokenizer: "PreTrainedTokenizerBase") -> str:
        """As a model that stands alone, in the type in which it was trained."""
        model_to_folder(self._model, tokenizer, folder, self._model.dtype)
        return resolve(str(folder)).digest


def _name_of(dtype: Any) -> str:
    return str(cast(torch.dtype, dtype)).removeprefix("torch.")
