"""`LoraModel`: the adapters of one base model.

It knows which there are, which are on and which take gradients, and what can become of them:
merged, combined, taken out. Files and calls are `PeftModel`'s. The base's layers are adapted in
place; its weights are never changed.

It is also the step between shell and base that gives parameters PEFT's names.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ince.errors import AdapterError
from ince.lora.allocation.allocator import RankAllocator
from ince.lora.config import PeftConfig
from ince.lora.layers.adapted import adapted_modules
from ince.lora.layers.state import AdapterState, active_for_now
from ince.lora.peft_model.allocating import allocate, regularized
from ince.lora.peft_model.combining import combined_adapter, reduced_adapter
from ince.lora.peft_model.joining import (
    check_joins,
    check_not_adapted,
    known_names,
    with_base_name,
)
from ince.lora.peft_model.merging import base_dtype, merge_in_place, merged_copy
from ince.lora.placement.inject import (
    delete_adapter,
    inject,
    inject_tensors,
    lora_layers,
    restore_base,
)

__all__ = ["LoraModel"]


class LoraModel(nn.Module):
    """A base and its adapters, several of which may be active: their updates add up.

    Args:
        model: the base, adapted in place: its parameters are frozen and its layers wrapped.
        peft_config: of the first adapter, or configs by adapter name.
        adapter_name: of the first adapter.
        low_cpu_mem_usage: without effect; adapters are small, and made where the base lies.

    Attributes:
        model: the base.
        peft_config: by adapter name, the config as resolved against the model.

    Raises:
        ConfigError: a config does not fit the model.
        AdapterError: the model is adapted already, or a name cannot be used.
    """

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig | Mapping[str, PeftConfig] | None = None,
        adapter_name: str = "default",
        low_cpu_mem_usage: bool = False,  # noqa: ARG002
    ) -> None:
        super().__init__()
        check_not_adapted(model)
        self.model = model
        self.peft_config: dict[str, PeftConfig] = {}
        self.adapter_state = AdapterState()
        self.training = model.training
        # Adapters that were given gradients: `set_adapter` need not look at the others.
        self._trained: set[str] = set()
        self._merged: list[str] = []
        self._allocators: dict[str, RankAllocator] = {}
        configs = peft_config if isinstance(peft_config, Mapping) else {adapter_name: peft_config}
        for name, config in configs.items():
            if config is not None:
                self.add_adapter(name, config)

    # ------------------------------------------------------------------------ adding, deleting

    def add_adapter(self, adapter_name: str, peft_config: PeftConfig) -> None:
        """Add a fresh adapter. The first is active; others are when `set_adapter` says so.

        Raises:
            ConfigError: the config does not fit the model.
            AdapterError: the name is taken or cannot be used, or the adapter does not go with
                those that there are.
        """
        check_joins(peft_config, self.peft_config)
        config = with_base_name(peft_config, self.model)
        resolved = inject(self.model, config, adapter_name, state=self.adapter_state)
        self.peft_config[adapter_name] = resolved
        is_active = adapter_name in self.adapter_state.active
        self._give_gradients([adapter_name], is_active and not resolved.inference_mode)

    def add_tensors(
        self,
        adapter_name: str,
        peft_config: PeftConfig,
        tensors: Mapping[str, Tensor],
        *,
        is_trainable: bool = False,
        may_keep: bool = False,
        where: object = None,
    ) -> None:
        """Add an adapter that exists. The first is active.

        Args:
            adapter_name: its name here.
            peft_config: as in its file.
            tensors: by the names of its file, every one of which must be used.
            is_trainable: whether its weights take gradients.
            may_keep: whether `tensors` may become the weights, instead of being copied.
            where: the file, for errors.

        Raises:
            ConfigError, AdapterError: it does not fit the model, which is as it was.
        """
        check_joins(peft_config, self.peft_config)
        resolved = inject_tensors(
            self.model,
            peft_config.model_copy(update={"inference_mode": not is_trainable}),
            tensors,
            adapter_name,
            where=where,
            state=self.adapter_state,
            may_keep=may_keep,
            requires_grad=is_trainable,
        )
        self.peft_config[adapter_name] = resolved
        self._trained.update([adapter_name] if is_trainable else [])

    def delete_adapter(self, adapter_name: str) -> None:
        """Take an adapter out.

        Other active adapters stay so. When none is left, the first by name becomes active;
        without any the model is its base, and the next one that is added is active.

        Raises:
            AdapterError: no adapter of this name, or it is merged.
        """
        known_names([adapter_name], self.peft_config)
        if adapter_name in self.merged_adapters:
            raise AdapterError(
                "a merged adapter cannot be deleted",
                got=adapter_name,
                do="call unmerge_adapter() first",
            )
        delete_adapter(self.model, adapter_name)
        del self.peft_config[adapter_name]
        self._trained.discard(adapter_name)
        active = [name for name in self.active_adapters if name != adapter_name]
        if active:
            self.adapter_state.active = tuple(active)
        elif self.peft_config:
            self.set_adapter(min(self.peft_config))
        else:
            self.adapter_state.active = ()

    # ------------------------------------------------------------------------- active, trained

    @property
    def active_adapters(self) -> list[str]:
        """Those whose updates add up; empty only when there is no adapter."""
        return list(self.adapter_state.active)

    @property
    def active_adapter(self) -> str | list[str]:
        """The active one; a list when they are several or none."""
        active = self.active_adapters
        return active[0] if len(active) == 1 else active

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Make adapters the active ones, which alone take gradients. Unmerges a merged model.

        Args:
            adapter_name: one name, or several.
            inference_mode: whether they take none either.

        Raises:
            AdapterError: no adapter of a name, none named, or several that cannot act together.
        """
        names = known_names(adapter_name, self.peft_config)
        for _, adapted in adapted_modules(self.model) if len(names) > 1 else ():
            adapted.check_active(names)
        if self.merged_adapters:
            self.unmerge_adapter()
        self.adapter_state.active = tuple(names)
        self._give_gradients([name for name in self._trained if name not in names], False)
        self._give_gradients(names, not inference_mode)

    def set_requires_grad(
        self, adapter_names: str | Sequence[str], requires_grad: bool = True
    ) -> None:
        """Let the weights of adapters take gradients, or not. Active ones stay active.

        Raises:
            AdapterError: no adapter of a name.
        """
        self._give_gradients(known_names(adapter_names, self.peft_config), requires_grad)

    def _give_gradients(self, adapter_names: Sequence[str], wanted: bool) -> None:
        if not adapter_names:
            return
        for _, adapted in adapted_modules(self.model):
            for name in adapter_names:
                for tensor in adapted.tensors(name).values():
                    if isinstance(tensor, nn.Parameter):  # stored buffers of whole modules
                        tensor.requires_grad_(wanted)
        if wanted:
            self._trained.update(adapter_names)
        else:
            self._trained.difference_update(adapter_names)

    def disable_adapter_layers(self) -> None:
        """Be the base, until `enable_adapter_layers`."""
        self.adapter_state.disabled = True

    def enable_adapter_layers(self) -> None:
        """Let the active adapters act again."""
        self.adapter_state.disabled = False

    # --------------------------------------------------------------------------------- merging

    @property
    def merged_adapters(self) -> list[str]:
        """Those with which layers compute merged, in the order of their names."""
        return list(self._merged)

    def merge_adapter(
        self,
        adapter_names: Sequence[str] | None = None,
        safe_merge: bool = False,  # noqa: ARG002
    ) -> None:
        """Compute with merged weights, kept beside the base, which stays as it is.

        Args:
            adapter_names: which; by default the active ones. They join those merged before.
            safe_merge: without effect: a merge is always checked.

        Raises:
            AdapterError: no adapter of a name, or a merged weight is not finite. The model is
                as it was.
        """
        names = self._names_to_merge(adapter_names)
        self._merged = merge_in_place([layer for _, layer in lora_layers(self.model)], names)

    def unmerge_adapter(self) -> None:
        """Drop the merged weights: the base was there all along."""
        for _, layer in lora_layers(self.model):
            layer.unmerge()
        self._merged = []

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,  # noqa: ARG002
        adapter_names: Sequence[str] | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> nn.Module:
        """A new plain model with adapters merged in; this one is left as it is.

        Args:
            progressbar: show one, on a terminal.
            safe_merge: without effect: a merge is always checked.
            adapter_names: which; by default those merged in place and the active ones.
            dtype: of its weights; without it the base's, 16-bit when the base is quantized.

        Raises:
            AdapterError: no adapter of a name, or a merged weight is not finite.
        """
        names = self._names_to_merge(adapter_names)
        with active_for_now(self.adapter_state, names):
            return merged_copy(self.model, dtype or base_dtype(self.model), progressbar)

    def unload(self) -> nn.Module:
        """The base as it was, all adapters taken out. This shell is empty then."""
        restore_base(self.model)
        self.peft_config.clear()
        self._trained.clear()
        self._merged = []
        self.adapter_state.active = ()
        return self.model

    def _names_to_merge(self, adapter_names: Sequence[str] | None) -> list[str]:
        if adapter_names is None:
            return list(dict.fromkeys([*self._merged, *self.active_adapters]))
        if isinstance(adapter_names, str):
            raise AdapterError(
                "adapter_names is not a list", got=adapter_names, do=f"give [{adapter_names!r}]"
            )
        return known_names(adapter_names, self.peft_config)

    # ------------------------------------------------------------------------------- combining

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "svd",
        svd_rank: int | None = None,
        svd_clamp: float | None = None,
        svd_full_matrices: bool = True,
        svd_driver: str | None = None,
        density: float | None = None,
        majority_sign_method: str = "total",
    ) -> None:
        """Add a combination of adapters, neither active nor trained.

        `ince.lora.combine.KINDS` lists the kinds; "cat" and "svd" (of enough rank) give the
        weighted sum of the updates. A module that one of the adapters trains whole is taken
        over as it is; there is no combination of several.

        Args:
            adapters: their names.
            weights: one for each.
            adapter_name: of the new adapter.
            combination_type, svd_rank, svd_clamp, svd_full_matrices, svd_driver, density,
                majority_sign_method: see `ince.lora.combine.check_combination`.

        Raises:
            ConfigError: options that cannot be.
            AdapterError: unknown or taken names, ranks that differ, or no plain low-rank
                updates. The model is as it was.
        """
        config, tensors = combined_adapter(
            self.model,
            self.peft_config,
            adapters,
            weights,
            combination_type,
            svd_rank=svd_rank,
            svd_clamp=svd_clamp,
            svd_full_matrices=svd_full_matrices,
            svd_driver=svd_driver,
            density=density,
            majority_sign_method=majority_sign_method,
        )
        self._add_frozen(adapter_name, config, tensors)

    def reduce_rank(
        self,
        adapter_name: str,
        new_name: str,
        *,
        r: int | None = None,
        energy: float | None = None,
    ) -> dict[str, int]:
        """Add an adapter that is the nearest one of lower rank. It is not active.

        Args:
            adapter_name: of the one to reduce, which stays.
            new_name: of the reduced one.
            r: at most this rank in every layer.
            energy: in (0, 1]; in every layer as many ranks as keep this share of ‖ΔW‖².

        Returns:
            The rank of each layer, by name. The new config has them in `rank_pattern`.

        Raises:
            ConfigError: neither is given, or one is out of range.
            AdapterError: no such adapter, a name that is taken, or no plain low-rank update.
        """
        known_names([adapter_name], self.peft_config)
        config, tensors, ranks = reduced_adapter(
            self.model, self.peft_config[adapter_name], adapter_name, r=r, energy=energy
        )
        self._add_frozen(new_name, config, tensors)
        return ranks

    def _add_frozen(self, name: str, config: PeftConfig, tensors: Mapping[str, Tensor]) -> None:
        self.add_tensors(name, config, tensors, may_keep=True)

    # ----------------------------------------------------------------------------------- model

    def get_base_model(self) -> nn.Module:
        """The base, its layers adapted."""
        return self.model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base's forward, with the active adapters; in training AdaLoRA adds to the loss."""
        names = [n for n in self.active_adapters if n in self._trained and self.training]
        return regularized(self.model(*args, **kwargs), self.model, self.peft_config, names)

    def update_and_allocate(self, global_step: int) -> None:
        """AdaLoRA's part of a training step: see `RankAllocator.update_and_allocate`."""
        allocate(self.model, self.peft_config, self._trained, self._allocators, global_step)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":  # not there before __init__ ends
                raise
            return getattr(self.model, name)
