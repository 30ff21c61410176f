"""`PeftModel`: a model with adapters, under the names of PEFT's API.

It is a thin shell: the base keeps its class and its methods, which the shell hands through, and
its layers are adapted in place. Of its own it has files in and out, the call with an adapter
for each row, and counts. What concerns the adapters in the model (`merge_and_unload`,
`add_weighted_adapter`, …) is `LoraModel`'s and reached through it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ince.errors import AdapterError, InputError
from ince.lora.config import PeftConfig
from ince.lora.hub import HubOptions, refuse_options, upload_adapters
from ince.lora.peft_model.dispatch import class_for_task
from ince.lora.peft_model.joining import check_not_adapted, known_names
from ince.lora.peft_model.loading import LoadResult, check_not_offloaded, load_into
from ince.lora.peft_model.lora_model import LoraModel
from ince.lora.peft_model.precision import in_base_precision
from ince.lora.peft_model.rows import num_rows_of, routed
from ince.lora.peft_model.saving import save_adapters
from ince.lora.peft_model.source import Reference, read_source
from ince.lora.peft_model.status import (
    TunerLayerStatus,
    TunerModelStatus,
    get_layer_status,
    get_model_status,
)
from ince.quant import num_weights

__all__ = ["PeftModel"]


class PeftModel(nn.Module):
    """A base model and its adapters.

    Args:
        model: the base, adapted in place: its parameters are frozen and its layers wrapped.
        peft_config: of the first adapter, which starts as the identity.
        adapter_name: of the first adapter.
        autocast_adapter_dtype: keep adapters in float32, as training needs; False keeps them
            in the precision of the base.
        low_cpu_mem_usage: without effect; adapters are small, and made where the base lies.

    Attributes:
        base_model: `LoraModel`, which holds the base as ``.model``.

    Raises:
        ConfigError: the config does not fit the model.
        AdapterError: the model is adapted already, or the name cannot be used.
    """

    task: ClassVar[str | None] = None
    base_endings: ClassVar[tuple[str, ...]] = ()
    # So that transformers.Trainer knows that over a quantized base there is something to train.
    _hf_peft_config_loaded: ClassVar[bool] = True
    base_model: LoraModel

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig,
        adapter_name: str = "default",
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,  # noqa: ARG002
    ) -> None:
        super().__init__()
        self.base_model = LoraModel(model, peft_config, adapter_name)
        self.training = model.training
        if not autocast_adapter_dtype:
            in_base_precision(model, adapter_name)

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        model_id: Reference,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        autocast_adapter_dtype: bool = True,
        ephemeral_gpu_offload: bool = False,
        low_cpu_mem_usage: bool = False,  # noqa: ARG003
        key_mapping: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> "PeftModel":
        """Put a trained adapter on `model`, in place. See `load_adapter` for the arguments.

        Args:
            model: the base it was trained on, 16-bit or quantized.

        Returns:
            Of this class; from `PeftModel` itself, of the class for the adapter's task.

        Raises:
            InputError, ConfigError, AdapterError, CorruptFileError: see `load_adapter`. The
                model is as it was.
        """
        check_not_adapted(model)
        check_not_offloaded(ephemeral_gpu_offload)
        source = read_source(model_id, HubOptions.of(kwargs), config, key_mapping)
        kind = class_for_task(cls, source.config.task_type, model) if cls is PeftModel else cls
        self = kind.__new__(kind)
        nn.Module.__init__(self)
        self.base_model = LoraModel(model)
        self.training = model.training
        load_into(self, source, adapter_name, is_trainable, autocast_adapter_dtype)
        return self

    # ------------------------------------------------------------------------- adapters in, out

    def add_adapter(
        self,
        adapter_name: str,
        peft_config: PeftConfig,
        low_cpu_mem_usage: bool = False,  # noqa: ARG002
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """Add a fresh adapter beside the others; `set_adapter` makes it the active one.

        Raises:
            ConfigError: the config does not fit the model.
            AdapterError: the name is taken or cannot be used, or the adapter does not go with
                the others.
        """
        self.base_model.add_adapter(adapter_name, peft_config)
        if not autocast_adapter_dtype:
            in_base_precision(self.get_base_model(), adapter_name)

    def load_adapter(
        self,
        model_id: Reference,
        adapter_name: str,
        is_trainable: bool = False,
        torch_device: str | torch.device | None = None,  # noqa: ARG002
        autocast_adapter_dtype: bool = True,
        ephemeral_gpu_offload: bool = False,
        low_cpu_mem_usage: bool = False,  # noqa: ARG002
        key_mapping: Mapping[str, str] | None = None,
        *,
        config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> LoadResult:
        """Load a trained adapter beside the others; `set_adapter` makes it the active one.

        Unless it is trainable the model is in evaluation mode afterwards, as in PEFT.

        Args:
            model_id: a folder in PEFT's format, a hub id, or tensors by the names of such a
                file (with `config`).
            adapter_name: what to call it. An adapter of this name takes the new weights when
                it is of the same shape and scale.
            is_trainable: whether its weights take gradients.
            torch_device: without effect; it is put where its layers lie.
            autocast_adapter_dtype: see the class.
            ephemeral_gpu_offload: only False.
            low_cpu_mem_usage: without effect; loading takes the memory of the adapter.
            key_mapping: regular expressions and replacements for the tensors' names.
            config: in place of the one in the file.
            **kwargs: of `HubOptions`, such as `subfolder`, `revision` and `token`.

        Raises:
            InputError: no such folder or repository, or an unknown argument.
            ConfigError, AdapterError: not an adapter, or it does not fit: missing, surplus and
                misshaped tensors are named. The model is as it was.
            CorruptFileError: a file is cut off or garbled.
        """
        check_not_offloaded(ephemeral_gpu_offload)
        if isinstance(model_id, Mapping) and config is None:
            config = self.peft_config.get(adapter_name)
        source = read_source(model_id, HubOptions.of(kwargs), config, key_mapping)
        load_into(self, source, adapter_name, is_trainable, autocast_adapter_dtype)
        return LoadResult([], [])

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        safe_serialization: bool = True,
        selected_adapters: Sequence[str] | None = None,
        save_embedding_layers: bool | str = "auto",
        is_main_process: bool = True,
        path_initial_model_for_weight_conversion: str | PathLike[str] | None = None,
        *,
        state_dict: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write adapters in PEFT's format: "default" into the folder, others into one of theirs.

        Args:
            save_directory: made when missing.
            safe_serialization: only True: pickles are not written.
            selected_adapters: which; by default all.
            save_embedding_layers: the base's embeddings too. "auto": where the vocabulary is
                another than that of the base's folder.
            is_main_process: False writes nothing.
            path_initial_model_for_weight_conversion: folder of the untrained adapter: write a
                start that is taken off the base (PiSSA, OLoRA, LoRA-GA) as plain LoRA, of
                twice the rank. It is read where the model no longer knows the start.
            state_dict: of this model, gathered from several devices, in place of its weights.

        Raises:
            InputError: pickles or unknown arguments are asked for, or the directory is a file.
            AdapterError: no adapter of a name, or weights that are not finite.
            DiskFullError: nothing half-written is left.
        """
        refuse_options(kwargs, ["selected_adapters", "save_embedding_layers", "state_dict"])
        if not safe_serialization:
            raise InputError(
                "adapters are written in safetensors alone: reading a pickle runs code",
                got="safe_serialization=False",
                do="leave it out",
            )
        names = list(self.peft_config) if selected_adapters is None else list(selected_adapters)
        names = known_names(names, self.peft_config)
        initial = path_initial_model_for_weight_conversion
        if is_main_process:
            save_adapters(
                self.get_base_model(),
                self.peft_config,
                Path(save_directory),
                names,
                save_embedding_layers=save_embedding_layers,
                initial=None if initial is None else Path(initial),
                state_dict=state_dict,
            )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        **kwargs: Any,
    ) -> str:
        """Save the adapters and upload them to the hub; no card is written.

        Args:
            repo_id: OWNER/NAME, made when missing.
            **kwargs: of `save_pretrained`.

        Returns:
            The address of the commit.

        Raises:
            InputError: the hub refuses, or cannot be reached.
            AdapterError: see `save_pretrained`.
        """
        return upload_adapters(
            lambda folder: self.save_pretrained(folder, **kwargs),
            repo_id,
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
        )

    # ------------------------------------------------------------------------ which there are

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        """By adapter name, the config as resolved against the model."""
        return self.base_model.peft_config

    @property
    def active_adapters(self) -> list[str]:
        """Those whose updates add up."""
        return self.base_model.active_adapters

    @property
    def active_adapter(self) -> str:
        """The active one; of several the first.

        Raises:
            AdapterError: there is none left.
        """
        active = self.base_model.active_adapters
        if not active:
            raise AdapterError("no adapter is left", do="add or load one")
        return active[0]

    @property
    def active_peft_config(self) -> PeftConfig:
        """Of `active_adapter`."""
        return self.peft_config[self.active_adapter]

    @property
    def peft_type(self) -> str:
        """The method of the adapters."""
        return self.active_peft_config.peft_type

    @property
    def modules_to_save(self) -> set[str] | None:
        """Of all adapters; None when there are none."""
        names = {each for c in self.peft_config.values() for each in c.modules_to_save or ()}
        return names or None

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """`LoraModel.set_adapter`."""
        self.base_model.set_adapter(adapter_name, inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """`LoraModel.delete_adapter`."""
        self.base_model.delete_adapter(adapter_name)

    def set_requires_grad(
        self, adapter_names: str | Sequence[str], requires_grad: bool = True
    ) -> None:
        """`LoraModel.set_requires_grad`."""
        self.base_model.set_requires_grad(adapter_names, requires_grad)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside, the model is its base. Restored when an exception passes, too."""
        state = self.base_model.adapter_state
        before = state.disabled
        try:
            state.disabled = True
            yield
        finally:
            state.disabled = before

    def get_layer_status(self) -> list[TunerLayerStatus]:
        """Of every adapted module."""
        return get_layer_status(self)

    def get_model_status(self) -> TunerModelStatus:
        """Of all of them together."""
        return get_model_status(self)

    # ----------------------------------------------------------------------------------- model

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
        """The base's forward, with the active adapters.

        Args:
            adapter_names: of a mixed batch: for each row an adapter's name, or "__base__".
                In training too, but not with gradient checkpointing.

        Raises:
            AdapterError: `adapter_names` cannot be used; nothing was run.
        """
        return self._call(self.base_model, args, kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The base's generate; `adapter_names` as in `forward`, one for each prompt."""
        return self._call(self.get_base_model().generate, args, kwargs)

    def _call(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        state = self.base_model.adapter_state
        adapter_names = kwargs.pop("adapter_names", None)
        if adapter_names is None and state.routing is None:
            return function(*args, **kwargs)
        model = self.get_base_model()
        with routed(
            model,
            state,
            adapter_names,
            known=self.peft_config,
            merged=self.base_model.merged_adapters,
            num_rows=num_rows_of(model, args, kwargs),
        ):
            return function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":  # not there before __init__ ends
                raise
            return getattr(self.base_model, name)
