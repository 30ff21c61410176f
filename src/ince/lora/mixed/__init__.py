"""Mixed batches: a different adapter for each row, in one forward.

`Routing` says once per call which rows are whose; `mixed_forward` is a layer's forward under it.
"""

from ince.lora.mixed.layer import mixed_forward
from ince.lora.mixed.routing import BASE, Routing, RowPlan
from ince.lora.mixed.stack import StackCache

__all__ = ["BASE", "Routing", "RowPlan", "StackCache", "mixed_forward"]
