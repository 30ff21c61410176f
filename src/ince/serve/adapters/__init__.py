"""Many adapters over one base: how a server loads them, keeps them and applies them to rows.

`serve_layers` makes a model apply an adapter to each row of a step; `AdapterTiers` keeps adapters
on device, in memory and on disk, and loads nothing that it has not proved.
"""

from ince.serve.adapters.layers import ServedLayer, ServedModel, serve_layers
from ince.serve.adapters.load import load_adapter
from ince.serve.adapters.packed import PackedAdapter
from ince.serve.adapters.source import AdapterSource, Folders
from ince.serve.adapters.step import Segment, StepAdapters
from ince.serve.adapters.tiers import AdapterTiers, TierStats

__all__ = [
    "AdapterSource",
    "AdapterTiers",
    "Folders",
    "PackedAdapter",
    "Segment",
    "ServedLayer",
    "ServedModel",
    "StepAdapters",
    "TierStats",
    "load_adapter",
    "serve_layers",
]
