"""``ince demo``: the whole journey, from an installed package to a proven Turkish fine-tune."""

from ince.demo.journey import run_demo

__all__ = ["run_demo"]
