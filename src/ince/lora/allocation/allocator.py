"""`RankAllocator`: gives up the ranks of an AdaLoRA adapter that matter least, while it trains.

A rank that was given up has its singular value set to zero. It may come back as long as ranks
are chosen anew, since the optimizer moves the value off zero and its worth shows again; after
the last choice it is set back to zero at each step.

Source: AdaLoRA, arXiv:2303.10512, algorithm 1. Where PEFT gives up every rank that is worth no
more than the last one to go, here as many go as the budget says: ranks without a gradient are
all worth nothing.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ince.errors import AdapterError, TrainingError
from ince.lora.allocation.importance import Importance, rank_scores
from ince.lora.allocation.pattern import Mask, masks_by_module, pattern_of, within
from ince.lora.allocation.schedule import budget_at, last_allocation
from ince.lora.config import AdaLoraConfig
from ince.lora.layers.layer import LoraLayer
from ince.lora.placement.inject import lora_layers
from ince.lora.variants import ADALORA

__all__ = ["RankAllocator"]


class RankAllocator:
    """The ranks of one adapter in all its layers.

    Args:
        model: the base, its layers adapted.
        config: of the adapter, as resolved against the model.
        adapter_name: of the adapter.

    Attributes:
        config: with `rank_pattern` as it is now.

    Raises:
        AdapterError: it is no AdaLoRA adapter of the model.
    """

    def __init__(
        self, model: nn.Module, config: AdaLoraConfig, adapter_name: str = "default"
    ) -> None:
        self.config = config
        self.adapter_name = adapter_name
        self._layers: dict[str, LoraLayer] = {
            name: layer
            for name, layer in lora_layers(model)
            if adapter_name in layer.specs and layer.specs[adapter_name].variant == "adalora"
        }
        if not self._layers or not isinstance(config, AdaLoraConfig):
            raise AdapterError(
                "not an AdaLoRA adapter of the model",
                where=adapter_name,
                got=getattr(config, "peft_type", type(config).__name__),
                expected="the name and the config of one",
            )
        self._num_ranks = sum(layer.r[adapter_name] for layer in self._layers.values())
        self._importance: dict[str, tuple[Importance, Importance, Importance]] = {}

    def update_and_allocate(self, global_step: int) -> AdaLoraConfig:
        """Take in what a step showed; give up ranks when it is time.

        To be called at every step, when gradients are there: after ``optimizer.step()`` and
        before ``optimizer.zero_grad()``.

        Args:
            global_step: number of the step, which the config's `tinit`, `tfinal`, `deltaT` and
                `total_step` count.

        Returns:
            The config, with `rank_pattern` as it is now.

        Raises:
            TrainingError: no weight of the adapter has a gradient.
        """
        last = last_allocation(self.config)
        if global_step > last:
            self._mask(masks_by_module(self.config))
            return self.config
        if global_step < last:
            self._learn(global_step)
        budget = budget_at(
            global_step,
            self.config,
            num_ranks=self._num_ranks,
            num_layers=len(self._layers),
        )
        if budget.allocate:
            masks = self._choose(budget.ranks)
            self._mask(masks)
            self.config = self.config.model_copy(update={"rank_pattern": pattern_of(masks)})
        if global_step == last:
            self._importance.clear()
        return self.config

    def _learn(self, global_step: int) -> None:
        parts = {n: ADALORA.parts(each, self.adapter_name) for n, each in self._layers.items()}
        if all(part.grad is None for tensors in parts.values() for part in tensors):
            raise TrainingError(
                "AdaLoRA has no gradients to choose ranks by",
                where=f"adapter {self.adapter_name!r}, step {global_step}",
                do="call update_and_allocate after backward() and before zero_grad()",
            )
        for name, tensors in parts.items():
            known = self._importance.get(name)
            if known is None:
                a, e, b = tensors
                known = self._importance[name] = (Importance(a), Importance(e), Importance(b))
            for importance, tensor in zip(known, tensors, strict=True):
                importance.update(
                    tensor, tensor.grad, beta1=self.config.beta1, beta2=self.config.beta2
                )

    def _choose(self, num_left: int) -> dict[str, Mask]:
        """The masks that leave the `num_left` ranks that are worth most."""
        if not self._importance:  # the first call is the last allocation
            scores = {name: torch.zeros(r) for name, r in self._ranks().items()}
        else:
            scores = {name: rank_scores(*each) for name, each in self._importance.items()}
        every = torch.cat(list(scores.values()))
        left = torch.ones(every.numel(), dtype=torch.bool)
        # Of equals the later go first, in a fixed order: stable, and from the end.
        order = every.flip(0).argsort(stable=True)
        left[every.numel() - 1 - order[: every.numel() - num_left]] = False
        masks = left.split(list(self._ranks().values()))
        return {
            name: self._of_all(name, tuple(mask.tolist()))
            for name, mask in zip(scores, masks, strict=True)
        }

    def _ranks(self) -> dict[str, int]:
        return {name: layer.r[self.adapter_name] for name, layer in self._layers.items()}

    def _of_all(self, name: str, mask: Mask) -> Mask:
        """A mask of the ranks that are in a layer as one of all that it began with."""
        kept = self._layers[name].specs[self.adapter_name].kept
        if kept is None:
            return mask
        here = iter(mask)
        return tuple(is_here and next(here) for is_here in kept)

    @torch.no_grad()
    def _mask(self, masks: Mapping[str, Mask]) -> None:
        for name, mask in masks.items():
            layer = self._layers[name]
            _, e, _ = ADALORA.parts(layer, self.adapter_name)
            left: Tensor = torch.tensor(
                within(mask, layer.specs[self.adapter_name].kept), device=e.device
            )
            e.masked_fill_(~left.bool().unsqueeze(1), 0.0)
