"""LoRA-FA: A stays as it started, B is trained, as if W itself were.

With A frozen, the step of B that moves W nearest to where its full gradient points is not the
gradient of B, g_B = s · g_W Aᵀ, but

    ĝ_B = g_B (A Aᵀ)⁻¹ / s²

which AdamW is then given. A layer whose A takes no gradient keeps no input for it (see
`ince.lora.product`): memory for activations falls to (N, r).

Source: arXiv:2308.03303; the projection is that of LoRA-Pro, arXiv:2407.18242, with A fixed, as
in PEFT. PEFT computes it in bfloat16 where the machine can, and pairs the factors by their
order, which several adapters upset; here it is float32, and each B knows its A.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ince.errors import AdapterError, ConfigError, Problem
from ince.lora import LoraLayer
from ince.lora.layers.adapted import Adapted, adapted_modules, plain_model
from ince.lora.layers.wrapper import Wrapper
from ince.lora.placement.inject import state_of

__all__ = ["LoraFAOptimizer", "create_lorafa_optimizer"]

_EPSILON = 1e-8
"""Added to A Aᵀ, as PEFT does."""


class LoraFAOptimizer(torch.optim.Optimizer):
    """AdamW, with the gradient of each B corrected for its frozen A.

    Its state is torch's AdamW's: ``exp_avg``, ``exp_avg_sq`` and ``step`` of each parameter.
    Weight decay comes after the step, on what the step gave.

    Args:
        params: parameters or groups, as of any optimizer.
        frozen: by B, its A and the scale s.
        lr: learning rate.
        betas: decays of the moments.
        eps: added to the root of the second moment.
        weight_decay: per step and unit of learning rate.
        correct_bias: whether young moments are scaled up, as AdamW does.

    Raises:
        ConfigError: a number cannot be.
    """

    def __init__(
        self,
        params: Iterable[Any],
        frozen: Mapping[nn.Parameter, tuple[Tensor, float]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
    ) -> None:
        problems = [
            Problem(name, f"expected {expected}, got {value}")
            for name, value, is_right, expected in (
                ("lr", lr, 0 <= lr < math.inf, "a number of at least 0"),
                ("betas", betas, all(0 <= b < 1 for b in betas), "numbers from 0 to below 1"),
                ("eps", eps, 0 <= eps < math.inf, "a number of at least 0"),
                ("weight_decay", weight_decay, 0 <= weight_decay < math.inf, "a number"),
            )
            if not is_right
        ]
        problems += [Problem("scale", "is 0") for _, s in frozen.values() if s == 0][:1]
        if problems:
            raise ConfigError("LoRA-FA cannot train like this", problems=problems)
        self._frozen = dict(frozen)
        self._inverses: dict[nn.Parameter, tuple[tuple[int, int], Tensor]] = {}
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "correct_bias": correct_bias,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of every parameter that has a gradient; returns what `closure` gives."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, self._corrected(parameter), group)
        return loss

    def _step(self, parameter: nn.Parameter, grad: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        state["step"] += 1
        first, second = state["exp_avg"], state["exp_avg_sq"]
        first.mul_(beta1).add_(grad, alpha=1 - beta1)
        second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        size = group["lr"]
        if group["correct_bias"]:
            count = int(state["step"])
            size *= math.sqrt(1 - beta2**count) / (1 - beta1**count)
        parameter.addcdiv_(first, second.sqrt().add_(group["eps"]), value=-size)
        if group["weight_decay"] > 0:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])

    def _corrected(self, parameter: nn.Parameter) -> Tensor:
        grad = parameter.grad
        assert grad is not None  # asked before
        if parameter not in self._frozen:
            return grad
        a, s = self._frozen[parameter]
        # A convolution's B is (out, r, 1…), and A (r, in, kernel…).
        corrected = (grad.flatten(1).float() @ self._inverse(parameter, a)) / s**2
        return corrected.view_as(grad).to(grad.dtype)

    def _inverse(self, parameter: nn.Parameter, a: Tensor) -> Tensor:
        """(A Aᵀ)⁻¹, (r, r) float32 beside B; computed once, as A is frozen."""
        stamp = a.data_ptr(), a._version
        found = self._inverses.get(parameter)
        if found is None or found[0] != stamp:
            rows = a.detach().flatten(1).to("cpu", torch.float64)
            gram = rows @ rows.t() + _EPSILON * torch.eye(rows.shape[0], dtype=torch.float64)
            inverse = torch.linalg.pinv(gram, hermitian=True)
            found = stamp, inverse.to(parameter.device, torch.float32)
            self._inverses[parameter] = found
        return found[1]


def create_lorafa_optimizer(
    model: nn.Module,
    r: int,
    lora_alpha: float,
    lr: float,
    weight_decay: float = 0.0,
    use_rslora: bool | None = None,
) -> LoraFAOptimizer:
    """Freeze A of the active adapters, and make the optimizer of everything else that trains.

    `PeftModel.set_adapter` gives A its gradients back: call this after it.

    Args:
        model: a `PeftModel`, or a model that adapters were injected into.
        r: rank, as in the adapters' config; layers of another rank have theirs.
        lora_alpha: as in the config.
        lr: learning rate.
        weight_decay: per step and unit of learning rate.
        use_rslora: as in the config; None is what it says.

    Raises:
        ConfigError: an argument contradicts the config, or cannot be.
        AdapterError: no adapter is trained; or one has no A and B, or in an embedding, where A
            starts at zero and would stay there, or over parameters of experts.
    """
    base = plain_model(model)
    active = state_of(base).active
    _check_arguments(getattr(model, "peft_config", {}), active, r, lora_alpha, use_rslora)
    frozen: dict[nn.Parameter, tuple[Tensor, float]] = {}
    for name, module in adapted_modules(base):
        for each in module.chain():
            for adapter in active:
                pair = _pair(name, each, adapter)
                if pair is not None:
                    a, b, s = pair
                    frozen[b] = a, s
    if not frozen:
        raise AdapterError(
            "no adapter is trained", got=type(model).__name__, do="call get_peft_model first"
        )
    for a, _ in frozen.values():
        a.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return LoraFAOptimizer(trained, frozen, lr=lr, weight_decay=weight_decay)


def _pair(name: str, module: Adapted, adapter: str) -> tuple[Tensor, nn.Parameter, float] | None:
    """A, B and s of a layer, if the adapter is trained in it."""
    if isinstance(module, Wrapper):
        return None  # a whole module, rows of tokens, or a bias: trained by plain AdamW
    tensors = module.tensors(adapter)
    if not any(tensor.requires_grad for tensor in tensors.values()):
        return None
    if isinstance(module, LoraLayer) and "lora_A.weight" in tensors:
        b = tensors["lora_B.weight"]
        assert isinstance(b, nn.Parameter)
        return tensors["lora_A.weight"], b, module.scaling[adapter]
    raise AdapterError(
        "LoRA-FA trains B of linear and convolution layers",
        where=f"{name}, adapter {adapter!r}",
        got=", ".join(tensors),
        expected="lora_A.weight and lora_B.weight of one layer",
        do="leave the module out, or use another optimizer",
    )


def _check_arguments(
    configs: Mapping[str, Any],
    active: Iterable[str],
    r: int,
    lora_alpha: float,
    use_rslora: bool | None,
) -> None:
    given = {"r": r, "lora_alpha": lora_alpha}
    if use_rslora is not None:
        given["use_rslora"] = use_rslora
    problems = [
        Problem(key, f"is {value}, and {getattr(configs[name], key)} in the config of {name!r}")
        for name in active
        if name in configs
        for key, value in given.items()
        if getattr(configs[name], key, value) != value
    ]
    if problems:
        raise ConfigError("the arguments are those of another adapter", problems=problems)
