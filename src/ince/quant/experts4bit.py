"""The fused experts of a mixture in four bits: `Experts4bit`, in the place of a 3-D parameter.

transformers keeps the experts of a layer as stacks of matrices, parameters of one module. Each
such parameter is replaced by a module over the packed stack, whose ``[i]`` gives the matrix of
one expert, itself still packed (`ExpertWeight`). The module's own forward, which goes expert by
expert, is made the one that runs, whatever implementation of experts the model asks for: the
others want the whole stack in floats, which is never made here.

Shapes: the stack (E, M, N), blocks flat and row-major over all of it, as bitsandbytes has them.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from ince.errors import QuantError
from ince.ops import dequantize_absmax
from ince.ops.codes import ABSMAX_BLOCKSIZE
from ince.quant.config import NF4Config
from ince.quant.expert_weight import ExpertWeight, PackedSlice
from ince.quant.packed_module import PackedModule, packed_parts

__all__ = [
    "Experts4bit",
    "is_fused_experts",
    "put_experts",
    "stack_names",
    "take_experts",
]

_ONE_BY_ONE = "eager"
# Of the module: its config, and its stacks in the order of declaration.
_BEFORE = "before_packing"


class Experts4bit(PackedModule):
    """A frozen stack of matrices in four bits. Answers for its shape as a parameter would.

    Args:
        shape: (E, M, N).
        config: of the quantization.
        device: of the buffers. They hold no weight yet: load a state dict, or use
            `from_weight`.

    The buffers are those of `PackedModule`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        config: NF4Config | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if len(shape) != 3 or any(size < 1 for size in shape):
            raise QuantError(
                "not the shape of a stack of experts",
                got=tuple(shape),
                expected="(experts, rows, columns)",
            )
        num_experts, num_rows, num_columns = shape
        super().__init__(
            num_experts * num_rows * num_columns, NF4Config() if config is None else config, device
        )
        self.shape = torch.Size(shape)

    @classmethod
    @torch.no_grad()
    def from_weight(cls, weight: Tensor, *, config: NF4Config, name: str = "weight") -> Self:
        """Quantize `weight`, (E, M, N) of a float dtype.

        Raises:
            QuantError: it is not finite, or of another type or shape.
        """
        stack = cls(tuple(weight.shape), config=config, device="meta")
        for part, tensor in packed_parts(weight, config, name).items():
            setattr(stack, part, tensor)
        return stack

    # -------------------------------------------------------------------------- as a parameter

    ndim = 3

    @property
    def dtype(self) -> torch.dtype:
        """Of products with its matrices."""
        return self.compute_dtype

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.packed.device

    @property
    def num_weights(self) -> int:
        """Weights that the stack stands for."""
        return self.shape.numel()

    def size(self, dim: int | None = None) -> Any:
        """As `Tensor.size`."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """As `Tensor.dim`."""
        return 3

    def is_floating_point(self) -> bool:
        """What it stands for is."""
        return True

    def detach(self) -> Self:
        """Itself: no gradient goes to it."""
        return self

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> ExpertWeight:
        # By its call, so that hooks which bring the parts to a device are run.
        return self(index)

    def __iter__(self) -> Iterator[ExpertWeight]:
        return (self[expert] for expert in range(len(self)))

    def forward(self, index: Any) -> ExpertWeight:
        """The matrix of one expert.

        Raises:
            QuantError: `index` is not the number of one.
        """
        is_number = (
            index.ndim == 0 and not index.is_floating_point() and index.dtype != torch.bool
            if isinstance(index, Tensor)
            else isinstance(index, int) and not isinstance(index, bool)
        )
        if not is_number:
            raise _not_one_by_one(f"[{index!r}]")
        expert = int(index)
        if not -len(self) <= expert < len(self):
            raise IndexError(f"expert {expert} of {len(self)}")
        return ExpertWeight(self._slice(expert % len(self)), self.compute_dtype)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """No function of torch takes it whole."""
        del types, args, kwargs
        raise _not_one_by_one(getattr(func, "__name__", "a function of torch"))

    @torch.no_grad()
    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The stack (E, M, N) in floats, made expert by expert: for merging and export."""
        dtype = self.compute_dtype if dtype is None else dtype
        stack = torch.empty(self.shape, dtype=dtype, device=self.device)
        for expert, weight in enumerate(self):
            stack[expert] = weight.dequantize(dtype)
        return stack

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        config = self.config
        return (
            f"{tuple(self.shape)}, quant_type={config.quant_type}, "
            f"blocksize={config.blocksize}, double_quant={config.double_quant}, "
            f"compute_dtype={config.compute_dtype}"
        )

    @torch.no_grad()
    def _slice(self, expert: int) -> PackedSlice:
        size = self.config.blocksize
        num_rows, num_columns = self.shape[1:]
        first, last = expert * num_rows * num_columns, (expert + 1) * num_rows * num_columns
        first_block, last_block = first // size, -(-last // size)
        stop = min(last_block * size, self.num_weights)
        return PackedSlice(
            packed=self.packed[first_block * size // 2 : -(-stop // 2)],
            absmax=self._scales(first_block, last_block),
            blocksize=size,
            quant_type=self.config.quant_type,
            num_blocks_weights=stop - first_block * size,
            start=first - first_block * size,
            shape=(num_rows, num_columns),
        )

    def _scales(self, start: int, stop: int) -> Tensor:
        """Of the blocks from `start` to `stop`, in float32."""
        if self.nested_absmax is None or self.nested_offset is None:
            return self.absmax[start:stop]
        # Scales of scales begin where theirs do.
        outer = start // ABSMAX_BLOCKSIZE
        nested = self.nested_absmax[outer : -(-stop // ABSMAX_BLOCKSIZE)]
        codes = self.absmax[outer * ABSMAX_BLOCKSIZE : stop]
        scales = dequantize_absmax(codes, nested, self.nested_offset)
        return scales[start - outer * ABSMAX_BLOCKSIZE :]


def is_fused_experts(module: nn.Module) -> bool:
    """Whether `module` is transformers' fused experts, which can go expert by expert."""
    config = getattr(module, "config", None)
    return (
        isinstance(getattr(module, "is_transposed", None), bool)
        and isinstance(getattr(module, "has_gate", None), bool)
        and hasattr(config, "_experts_implementation")
    )


def stack_names(module: nn.Module) -> list[str]:
    """The stacks of matrices that fused experts own, by parameter name."""
    if not is_fused_experts(module):
        return []
    return [
        name
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and parameter.is_floating_point()
    ]


def put_experts(module: nn.Module, name: str, stack: Experts4bit) -> None:
    """Replace the parameter `name` of fused experts, and have them go expert by expert."""
    if _BEFORE not in vars(module):
        config: Any = module.config
        vars(module)[_BEFORE] = (config, tuple(stack_names(module)))
        # A copy for this module alone: what the model asks for does not reach it any more.
        own = copy.copy(config)
        own._experts_implementation_internal = _ONE_BY_ONE
        setattr(module, "config", own)  # noqa: B010  not declared
    delattr(module, name)
    module.add_module(name, stack.train(module.training))
    # In the order in which the class declares them, whichever came first: adapters go by it.
    for each in vars(module)[_BEFORE][1]:
        there = getattr(module, each)
        if isinstance(there, Experts4bit):
            delattr(module, each)
            module.add_module(each, there)


def take_experts(module: nn.Module, name: str, weight: Tensor) -> None:
    """Undo `put_experts`: the parameter `name` is `weight` again."""
    delattr(module, name)
    module.register_parameter(name, nn.Parameter(weight, requires_grad=False))
    if not any(isinstance(each, Experts4bit) for each in module.children()):
        setattr(module, "config", vars(module).pop(_BEFORE)[0])  # noqa: B010


def _not_one_by_one(got: str) -> QuantError:
    return QuantError(
        "experts in four bits are multiplied one by one, never as a whole stack",
        got=got,
        expected="the number of one expert",
        do="run the module's own forward (experts_implementation='eager')",
    )
