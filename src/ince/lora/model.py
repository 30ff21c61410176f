"""`PeftModel`: a transformers model with LoRA adapters, under the names of PEFT's API.

It is a thin shell: the base model keeps its class and its methods (``generate``, …), which
the shell hands through, and its layers are adapted in place. What it adds is what concerns
adapters: load, save, switch, merge, count.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from ince.errors import AdapterError, did_you_mean
from ince.formats.adapter import read_adapter, write_adapter
from ince.lora.config import LoraConfig
from ince.lora.layers.adapted import adapted_modules
from ince.lora.merge import merged_model
from ince.lora.placement.inject import (
    adapter_tensors,
    check_adapter_name,
    inject,
    inject_tensors,
    state_of,
)
from ince.quant import Linear4bit, num_weights

__all__ = ["LoraModel", "PeftModel", "get_peft_model"]


class LoraModel(nn.Module):
    """The step between shell and base that gives parameters PEFT's names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's forward."""
        return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":  # not there before __init__ ends
                raise
            return getattr(self.model, name)


class PeftModel(nn.Module):
    """A base model and its adapters, one of them active.

    Args:
        model: the base, adapted in place: its parameters are frozen and its layers wrapped.
        config: of the first adapter, which starts as the identity.
        adapter_name: of the first adapter.

    Attributes:
        peft_config: by adapter name, the config as resolved against the model.

    Raises:
        ConfigError: the config does not fit the model.
        AdapterError: the model is adapted already, or the name cannot be used.
    """

    def __init__(self, model: nn.Module, config: LoraConfig, adapter_name: str = "default") -> None:
        super().__init__()
        _check_not_adapted(model)
        resolved = inject(model, _with_base(config, model), adapter_name)
        self._wrap(model, resolved, adapter_name)

    def _wrap(self, model: nn.Module, config: LoraConfig, adapter_name: str) -> None:
        self.base_model = LoraModel(model)
        self.peft_config: dict[str, LoraConfig] = {adapter_name: config}
        self.active_adapter: str = adapter_name
        self.training = model.training
        self.base_model.training = model.training
        self.set_adapter(adapter_name)

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        path: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
    ) -> Self:
        """Put the adapter in folder `path` on `model`, in place.

        Args:
            model: the base it was trained on, 16-bit or quantized.
            path: a folder in PEFT's format.
            adapter_name: what to call it.
            is_trainable: whether its weights take gradients.

        Raises:
            InputError: no such folder.
            ConfigError, AdapterError: not a LoRA adapter, or it does not fit. The model is
                as it was.
            CorruptFileError: a file is cut off or garbled.
        """
        _check_not_adapted(model)
        config = _read_into(model, Path(path), adapter_name, is_trainable)
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self._wrap(model, config, adapter_name)
        return self

    def add_adapter(self, adapter_name: str, peft_config: LoraConfig) -> None:
        """Add a fresh adapter beside the others; `set_adapter` makes it the active one."""
        model = self.get_base_model()
        self.peft_config[adapter_name] = inject(model, _with_base(peft_config, model), adapter_name)
        self.set_adapter(self.active_adapter)

    def load_adapter(self, path: str | Path, adapter_name: str, is_trainable: bool = False) -> None:
        """Load another adapter beside the others; see `from_pretrained`."""
        self.peft_config[adapter_name] = _read_into(
            self.get_base_model(), Path(path), adapter_name, is_trainable
        )
        self.set_adapter(self.active_adapter)

    def set_adapter(self, adapter_name: str) -> None:
        """Make an adapter the active one, which alone takes gradients.

        Raises:
            AdapterError: no adapter of this name.
        """
        self._check_known(adapter_name)
        self.active_adapter = adapter_name
        trainable = not self.peft_config[adapter_name].inference_mode
        state_of(self.get_base_model()).active = (adapter_name,)
        for _, adapted in adapted_modules(self.get_base_model()):
            for name in adapted.adapter_names():
                for tensor in adapted.tensors(name).values():
                    tensor.requires_grad_(trainable and name == adapter_name)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside, the model is its base. Restored when an exception passes, too."""
        state = state_of(self.get_base_model())
        before = state.disabled
        try:
            state.disabled = True
            yield
        finally:
            state.disabled = before

    def save_pretrained(
        self, save_directory: str | Path, selected_adapters: Sequence[str] | None = None
    ) -> None:
        """Write adapters in PEFT's format: "default" into the folder, others into one of theirs.

        Raises:
            AdapterError: no adapter of a name, or weights that are not finite.
            DiskFullError: nothing half-written is left.
        """
        names = list(self.peft_config) if selected_adapters is None else list(selected_adapters)
        for name in names:
            self._check_known(name)
        for name in names:
            folder = Path(save_directory) if name == "default" else Path(save_directory) / name
            config = self.peft_config[name].model_copy(update={"inference_mode": True})
            write_adapter(
                folder, config.to_peft_dict(), adapter_tensors(self.get_base_model(), name)
            )

    def merge_and_unload(self, dtype: torch.dtype | None = None) -> nn.Module:
        """A new plain model with the active adapter merged in; this one is left as it is.

        Args:
            dtype: of its weights; without it the base's, 16-bit when the base is quantized.
        """
        model = self.get_base_model()
        return merged_model(model, _base_dtype(model) if dtype is None else dtype)

    def get_base_model(self) -> nn.Module:
        """The transformers model, its layers adapted."""
        return self.base_model.model

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(trainable, all). A 4-bit weight counts as the weights it stands for."""
        num_trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return num_trainable, num_weights(self)

    def print_trainable_parameters(self) -> None:
        """Print how much of the model is trained, in PEFT's words."""
        num_trainable, num_all = self.get_nb_trainable_parameters()
        share = 100 * num_trainable / num_all
        print(  # noqa: T201  what PEFT's programs expect
            f"trainable params: {num_trainable:,d} || all params: {num_all:,d} "
            f"|| trainable%: {share:.4f}"
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's forward, with the active adapter."""
        return self.base_model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":  # not there before __init__ ends
                raise
            return getattr(self.base_model, name)

    def _check_known(self, adapter_name: str) -> None:
        if adapter_name not in self.peft_config:
            raise AdapterError(
                f"the model has no adapter {adapter_name!r}",
                expected=", ".join(self.peft_config),
                do=did_you_mean(adapter_name, self.peft_config),
            )


def get_peft_model(
    model: nn.Module, peft_config: LoraConfig, adapter_name: str = "default"
) -> PeftModel:
    """Freeze `model` and put a fresh LoRA adapter on it, in place.

    Raises:
        ConfigError: the config does not fit the model.
        AdapterError: the model is adapted already: that would train only the new adapter.
    """
    return PeftModel(model, peft_config, adapter_name)


def _read_into(model: nn.Module, path: Path, adapter_name: str, is_trainable: bool) -> LoraConfig:
    check_adapter_name(adapter_name)
    values, tensors = read_adapter(path)
    config = LoraConfig.from_peft_dict(values, where=path)
    config = config.model_copy(update={"inference_mode": not is_trainable})
    return inject_tensors(model, config, tensors, adapter_name, where=path)


def _check_not_adapted(model: nn.Module) -> None:
    if isinstance(model, PeftModel) or any(True for _ in adapted_modules(model)):
        raise AdapterError(
            "the model is adapted already",
            got=type(model).__name__,
            do="use its add_adapter or load_adapter, or load the base anew",
        )


def _with_base(config: LoraConfig, model: nn.Module) -> LoraConfig:
    """`config` with the name of its base, where the model knows it."""
    name = getattr(model, "name_or_path", None)
    if config.base_model_name_or_path is not None or not isinstance(name, str) or not name:
        return config
    return config.model_copy(update={"base_model_name_or_path": name})


def _base_dtype(model: nn.Module) -> torch.dtype:
    for module in model.modules():
        if isinstance(module, Linear4bit):
            return module.compute_dtype
    adapters = {
        id(tensor)
        for _, adapted in adapted_modules(model)
        for name in adapted.adapter_names()
        for tensor in adapted.tensors(name).values()
    }
    dtypes: list[torch.dtype] = [
        p.dtype for p in model.parameters() if id(p) not in adapters and p.is_floating_point()
    ]
    return dtypes[0] if dtypes else torch.bfloat16
