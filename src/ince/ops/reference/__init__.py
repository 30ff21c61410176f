"""The reference backend: plain PyTorch, on any device, the definition of correct."""

from ince.ops.reference import absmax, nf4

__all__ = ["absmax", "nf4"]
