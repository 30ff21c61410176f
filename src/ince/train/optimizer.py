"""The optimizer of a run: made as its config says, and what its state takes."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ince.optim import PagedOptimizer, PagesUsage, build_optimizer, is_paged
from ince.train.config import TrainConfig
from ince.train.pages import PagesSection

__all__ = ["has_state", "optimizer_of", "pages_of", "pages_usage", "state_bytes"]

# Bytes of state for each number that learns; in 8 bits with a scale for each block of 256.
_STATE_BYTES = {"adamw": 8.0, "lion": 4.0, "adamw_8bit": 2 + 8 / 256, "lion_8bit": 1 + 4 / 256}


def optimizer_of(
    config: TrainConfig,
    parameters: Mapping[str, nn.Parameter],
    *,
    lr_ratios: Mapping[str, float] | None,
    run_dir: Path,
) -> torch.optim.Optimizer:
    """The optimizer that `config` names; its pages' file, if any, is made in `run_dir`.

    Raises:
        ConfigError: there is no place for the file.
    """
    pages = pages_of(config)
    run_dir.mkdir(parents=True, exist_ok=True)
    return build_optimizer(
        parameters,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        lr_ratios=lr_ratios,
        name=config.optimizer,
        pages=None if pages is None else pages.to_config(run_dir),
    )


def pages_of(config: TrainConfig) -> PagesSection | None:
    """The budgets that are asked for; None where the optimizer does not page."""
    return (config.pages or PagesSection()) if is_paged(config.optimizer) else None


def pages_usage(optimizer: torch.optim.Optimizer) -> PagesUsage | None:
    """Where its state is; None where it does not page."""
    return optimizer.usage() if isinstance(optimizer, PagedOptimizer) else None


def has_state(optimizer: torch.optim.Optimizer) -> bool:
    """It has made a step, or was given the state of some."""
    if isinstance(optimizer, PagedOptimizer):
        return optimizer.state_bytes > 0
    return bool(optimizer.state)


def state_bytes(config: TrainConfig, parameters: Mapping[str, nn.Parameter]) -> int:
    """Of the state once it is there, about: small tensors have more than that in 8 bits."""
    per_number = _STATE_BYTES[config.optimizer.removeprefix("paged_")]
    return int(per_number * sum(p.numel() for p in parameters.values()))
