"""Run a module with other parameters than its own, leaving it as it is.

`torch.func.functional_call` puts the others into the module and takes them out afterwards: two
threads that share a model would see each other's. Here the call goes to a view: an object of
the module's class with its attributes, and another table of parameters. Nothing is changed, so
there is nothing to undo when the forward raises.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

__all__ = ["run_with"]


def run_with(
    module: nn.Module,
    parameters: Mapping[str, Any],
    *args: Any,
    attributes: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """What `module` gives when its parameters of these dotted names are others.

    Args:
        module: any; its hooks are called.
        parameters: tensors, or objects that stand in for one (``__torch_function__``).
        args: of the call. kwargs: of the call.
        attributes: plain attributes of the module that are others, too.
    """
    names = {name.rpartition(".")[0] for name in parameters}
    # Accelerate and the like put a forward into the module, which is bound to it: there the
    # parameters have to go into the module itself. The compiler knows functional_call.
    bound = any("forward" in vars(module.get_submodule(name)) for name in names)
    if (bound or torch.compiler.is_compiling()) and not attributes:
        return functional_call(module, dict(parameters), args, kwargs)
    view = _view(module, parameters)
    view.__dict__.update(attributes or {})
    return view(*args, **kwargs)


def _view(module: nn.Module, parameters: Mapping[str, Any]) -> nn.Module:
    own: dict[str, Any] = dict(vars(module)["_parameters"])
    inside: dict[str, dict[str, Any]] = {}
    for name, tensor in parameters.items():
        child, dot, rest = name.partition(".")
        if dot:
            inside.setdefault(child, {})[rest] = tensor
        else:
            own[name] = tensor
    children: dict[str, nn.Module | None] = dict(vars(module)["_modules"])
    for child, tensors in inside.items():
        held = children[child]
        assert held is not None  # the names are of parameters
        children[child] = _view(held, tensors)
    view = object.__new__(type(module))
    view.__dict__.update(module.__dict__)
    view.__dict__.update(_parameters=own, _modules=children)
    return view
