"""Several adapted layers computed as one, with a backward pass written out.

`joint_linear` is for layers that read the same input (q, k and v); `gated_mlp` for the three of
a gated feed-forward block. Both take layers as they are and give None where they do not apply
(several adapters, DoRA, a base that trains): the caller then lets each layer compute by itself.
"""

from ince.lora.fused.gated import gated_mlp
from ince.lora.fused.joint import joint_linear
from ince.lora.fused.part import Part, part_of

__all__ = ["Part", "gated_mlp", "joint_linear", "part_of"]
