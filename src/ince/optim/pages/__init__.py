"""Optimizer state in pages, which live on the device, in memory or in a file."""

from ince.optim.pages.config import PagesConfig

__all__ = ["PagesConfig"]
