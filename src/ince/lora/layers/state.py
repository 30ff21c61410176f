"""`AdapterState`: which adapters are on, held once for a whole model.

Each adapted module looks here at every forward. So switching, disabling and routing are one
assignment and not a walk over the layers, and no layer can be left behind in an old state.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ince.lora.layers.projections import Projections
    from ince.lora.mixed.routing import Routing

__all__ = ["AdapterState"]


@dataclass(eq=False)
class AdapterState:
    """Shared by all adapted modules of one model."""

    active: tuple[str, ...] = ()
    """Names of the adapters whose updates add up."""
    disabled: bool = False
    """Whether the model is its base."""
    routing: "Routing | None" = field(default=None, repr=False)
    """An adapter for each row of the batch, for the length of one call."""
    shared: "dict[str, Projections]" = field(default_factory=dict, repr=False)
    """By adapter, the matrices that all its layers have in common (VeRA)."""
