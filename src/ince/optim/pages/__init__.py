"""Optimizer state in pages, which live on the device, in memory or in a file."""

from ince.optim.pages.config import PagesConfig
from ince.optim.pages.store import PageStore, PagesUsage

__all__ = ["PageStore", "PagesConfig", "PagesUsage"]
