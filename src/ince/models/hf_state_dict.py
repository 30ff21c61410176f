"""A packed model's tensors for files, wherever accelerate has put them; and the way back.

Layers that a device map leaves to the CPU or to disks have no data but while they run.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from ince.errors import QuantError
from ince.formats.bitsandbytes import PackedWeight, write_packed
from ince.quant import Experts4bit, Linear4bit, packed_modules, packed_weight_name
from ince.quant.experts4bit import take_experts
from ince.quant.packed_module import PARTS

__all__ = ["keep_offloaded", "left_out", "packed_state_dict", "unpack"]

_Packed = Linear4bit | Experts4bit


def packed_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of `model` by their names in bitsandbytes' layout.

    Codes and scales are those of the model, not copies; offloaded ones come to the CPU. All
    else is as in its state dict.

    Raises:
        QuantError: the layout does not have the format.
    """
    packed = packed_modules(model)
    tensors: dict[str, Tensor] = {}
    written: set[str] = set()
    for name, tensor in model.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        if owner not in packed or leaf not in PARTS:
            tensors[name] = tensor
        elif owner not in written:
            written.add(owner)
            tensors |= _stored(owner, packed[owner])
    return tensors


def left_out(model: nn.Module) -> tuple[str, ...]:
    """The linear layers of `model` that are in floats."""
    return tuple(name for name, each in model.named_modules() if isinstance(each, nn.Linear))


def keep_offloaded(modules: Mapping[str, nn.Module]) -> None:
    """Leave the parts of offloaded modules to the CPU, where accelerate's hooks bring them from.

    Unless it is told to offload buffers, accelerate moves them all to the GPU for good; they
    are the packed weights here. Stacks of experts need no hook: they bring the matrix that is
    asked for, where it would bring the stack for each.
    """
    for module in modules.values():
        for hook in _hooks(module):
            if not getattr(hook, "offload", False) or hook.weights_map is None:
                continue
            on_disk = any(device.type == "meta" for device in hook.original_devices.values())
            if isinstance(module, Experts4bit) and not on_disk:
                from accelerate.hooks import remove_hook_from_module

                remove_hook_from_module(module)
                break
            if not hook.offload_buffers and "packed" in hook.weights_map:
                hook.offload_buffers = True
                module.to("meta")


def unpack(model: Any, dtype: torch.dtype | None = None) -> Any:
    """Replace the packed modules of `model` by plain ones, in place.

    Raises:
        QuantError: some are offloaded, and have no data now.
    """
    packed = packed_modules(model)
    offloaded = [name for name, module in packed.items() if module.packed.is_meta]
    if offloaded:
        raise QuantError(
            "layers that are offloaded cannot be expanded in place",
            where=", ".join(offloaded[:5]),
            do="load the model without a device map first",
        )
    for name, module in packed.items():
        owner, _, leaf = name.rpartition(".")
        parent = cast(nn.Module, model.get_submodule(owner))
        weight = module.dequantize(dtype)
        if isinstance(module, Experts4bit):
            take_experts(parent, leaf, weight)
            continue
        linear = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if module.bias is not None:
            linear.bias = nn.Parameter(module.bias.detach().to(weight.dtype), requires_grad=False)
        setattr(parent, leaf, linear.train(module.training))
    return model


def _stored(name: str, module: _Packed) -> dict[str, Tensor]:
    shape = module.shape if isinstance(module, Experts4bit) else module.weight_shape
    with _here(module):
        weight = PackedWeight(
            packed=module.packed,
            absmax=module.absmax,
            nested_absmax=module.nested_absmax,
            nested_offset=module.nested_offset,
            blocksize=module.config.blocksize,
            quant_type=module.config.quant_type,
            shape=tuple(shape),
            dtype=module.config.compute_dtype,
        )
        return write_packed(packed_weight_name(name, module), weight)


def _here(module: nn.Module) -> AbstractContextManager[Any]:
    """Within it, the parts of an offloaded module are on the CPU."""
    if not any(getattr(hook, "offload", False) for hook in _hooks(module)):
        return nullcontext()
    from accelerate.utils import align_module_device

    return align_module_device(module, torch.device("cpu"))


def _hooks(module: nn.Module) -> Iterable[Any]:
    hook = getattr(module, "_hf_hook", None)
    return () if hook is None else getattr(hook, "hooks", (hook,))
