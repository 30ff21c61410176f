"""The regularizer that makes AdaLoRA's A and B singular vectors: ‖A Aᵀ − I‖ and ‖Bᵀ B − I‖.

Without it E would mean little: ranks that overlap hide what each of them is worth.

Source: AdaLoRA, arXiv:2303.10512, eq. 4; as in PEFT the norms are not squared, and it is their
mean over all A and B.
"""

import torch
from torch import Tensor, nn

from ince.errors import AdapterError
from ince.lora.placement.inject import lora_layers
from ince.lora.variants import ADALORA

__all__ = ["orthogonality"]


def orthogonality(model: nn.Module, adapter_name: str = "default") -> Tensor:
    """How far the adapter's A and B are from orthogonal, 0-dimensional and differentiable.

    What training adds to the loss is `orth_reg_weight` times this.

    Args:
        model: the base, its layers adapted.
        adapter_name: of an AdaLoRA adapter.

    Raises:
        AdapterError: it is no AdaLoRA adapter of the model.
    """
    distances = [
        distance
        for _, layer in lora_layers(model)
        if adapter_name in layer.specs and layer.specs[adapter_name].variant == "adalora"
        for a, _, b in (ADALORA.parts(layer, adapter_name),)
        for distance in (_distance(a), _distance(b.t()))
    ]
    if not distances:
        raise AdapterError(
            f"the model has no AdaLoRA adapter {adapter_name!r}",
            do="name one that get_peft_model or load_adapter gave it",
        )
    # Layers of a model that is spread out lie on several devices.
    device = distances[0].device
    return torch.stack([distance.to(device) for distance in distances]).mean()


def _distance(rows: Tensor) -> Tensor:
    """‖R Rᵀ − I‖ of a matrix of r rows."""
    rows = rows.float()
    gram = rows @ rows.t()
    return torch.linalg.vector_norm(gram - torch.eye(rows.shape[0], device=rows.device))
