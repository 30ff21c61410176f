"""`TokenRows`: an embedding or output head of which an adapter trains some tokens' rows.

For new tokens, or few whose meaning shall change (PEFT's ``trainable_token_indices``): the rows
are an adapter's own, and the embedding is frozen and shared. Only what is looked up, or the
logits of these tokens, is computed anew; the weight is never copied.

    live    <module>.token_adapter.base_layer, ….token_adapter.trainable_tokens_delta.<adapter>
    file    <module>.token_adapter.trainable_tokens_delta

The rows replace those of the weight; they are no difference to them, whatever their name says.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ince.errors import AdapterError
from ince.lora.layers.adapted import MergedTensor
from ince.lora.layers.by_rows import by_rows
from ince.lora.layers.plain import plain_copy, plain_tensors
from ince.lora.layers.replaced import run_with
from ince.lora.layers.state import AdapterState
from ince.lora.layers.wrapper import Wrapper
from ince.quant import Linear4bit, weight_of

__all__ = ["TokenRows"]


class _TokenAdapter(nn.Module):
    """Gives what it holds PEFT's names."""

    base_layer: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.trainable_tokens_delta = nn.ParameterDict()
        self.token_places = nn.ModuleDict()


class _Places(nn.Module):
    """Token ids in order, and the row that each has; they move with the model."""

    ids: Tensor
    sorted_ids: Tensor
    rows: Tensor

    def __init__(self, token_ids: Sequence[int], device: torch.device) -> None:
        super().__init__()
        ids = torch.tensor(token_ids, dtype=torch.int64, device=device)
        sorted_ids, rows = torch.sort(ids)
        for name, value in (("ids", ids), ("sorted_ids", sorted_ids), ("rows", rows)):
            self.register_buffer(name, value, persistent=False)


class TokenRows(Wrapper):
    """Rows of an `nn.Embedding`, `nn.Linear` or `Linear4bit` that are an adapter's own.

    Where low-rank factors change the same weight, they change these rows too: the weight is
    that with the rows, plus s · B A.
    """

    level = 2

    token_adapter: _TokenAdapter

    def __init__(self, inner: nn.Module, state: AdapterState | None = None) -> None:
        super().__init__(inner, state)
        # Adapters whose rows here are another module's, as those of a tied head.
        self._tied: dict[str, TokenRows] = {}
        self._tokens: dict[str, tuple[int, ...]] = {}

    @property
    def base_layer(self) -> nn.Module:
        """Under PEFT's name."""
        return self.token_adapter.base_layer

    def put_inner(self, inner: nn.Module) -> None:
        """Wrap another module instead."""
        if "token_adapter" not in self._modules:
            self.token_adapter = _TokenAdapter()
        self.token_adapter.base_layer = inner

    # ------------------------------------------------------------------------------ adapters

    def add_adapter(
        self, adapter_name: str, token_ids: Sequence[int], tied_to: "TokenRows | None" = None
    ) -> None:
        """Copy the rows of some tokens for an adapter; or use those of a module that is tied."""
        device = next(iter(self.get_base_layer().buffers()), None)
        device = next(iter(self.get_base_layer().parameters()), device)
        assert device is not None  # layers have weights
        self._tokens[adapter_name] = tuple(token_ids)
        places = _Places(token_ids, device.device)
        self.token_adapter.token_places[adapter_name] = places
        if tied_to is None:
            rows = self._base_rows(places.ids).float().clone()
            self.token_adapter.trainable_tokens_delta[adapter_name] = nn.Parameter(rows)
        else:
            self._tied[adapter_name] = tied_to

    def rows_of(self, adapter_name: str) -> Tensor:
        """An adapter's rows, (tokens, width) float32."""
        owner = self._tied.get(adapter_name, self)
        return owner.token_adapter.trainable_tokens_delta[adapter_name]

    @property
    def tokens(self) -> dict[str, tuple[int, ...]]:
        """By adapter, the tokens in the order of their rows."""
        return dict(self._tokens)

    def own_names(self) -> tuple[str, ...]:
        """The adapters with rows."""
        return tuple(self._tokens)

    def own_tensors(self, adapter_name: str) -> dict[str, Tensor]:
        """The rows; of a tied module none, since they are another's."""
        if adapter_name not in self._tokens or adapter_name in self._tied:
            return {}
        return {"token_adapter.trainable_tokens_delta": self.rows_of(adapter_name)}

    def delete_own(self, adapter_name: str) -> None:
        """Drop an adapter's rows."""
        if self._tokens.pop(adapter_name, None) is not None:
            del self.token_adapter.token_places[adapter_name]
            if self._tied.pop(adapter_name, None) is None:
                del self.token_adapter.trainable_tokens_delta[adapter_name]

    def check_active(self, adapter_names: Sequence[str]) -> None:
        """A token can have one row.

        Raises:
            AdapterError: two of them have rows of one token.
        """
        super().check_active(tuple(adapter_names))
        seen: dict[int, str] = {}
        for name in adapter_names:
            for token in self._tokens.get(name, ()):
                if seen.setdefault(token, name) != name:
                    raise AdapterError(
                        "adapters with rows of their own for one token cannot be active together",
                        got=f"token {token} of {seen[token]} and {name}",
                        do="activate one of them",
                    )

    def _base_rows(self, ids: Tensor) -> Tensor:
        base = self.get_base_layer()
        if isinstance(base, Linear4bit):
            return weight_of(base)[ids]
        return cast(Tensor, base.weight).detach()[ids]

    # ------------------------------------------------------------------------------- forward

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the base makes of it, these tokens with their own rows."""
        state = self.state
        y = self.base_layer(x, *args, **kwargs)
        if state.disabled:
            return y
        if state.routing is None:
            active = self.own_active()
            if len(active) > 1:
                self.check_active(active)
            is_updated = self.inner is not None and bool(self.inner.active_here())
            for name in active:
                y = self._with_rows(name, x, y, is_updated=is_updated)
            return y
        if not set(state.routing.adapters) & set(self.own_names()):
            return y

        def run(adapter_name: str | None, x: Tensor, y: Tensor) -> Tensor:
            if adapter_name is None:
                return y
            inside = () if self.inner is None else self.inner.adapter_names()
            return self._with_rows(adapter_name, x, y, is_updated=adapter_name in inside)

        where = type(self.get_base_layer()).__name__
        return by_rows(state.routing, self.own_names(), run, (x, y), {}, where=where)

    def _with_rows(self, adapter_name: str, x: Tensor, y: Tensor, *, is_updated: bool) -> Tensor:
        """`y` with an adapter's rows; `is_updated`, where low-rank factors are in it."""
        places = cast(_Places, self.token_adapter.token_places[adapter_name])
        base = self.get_base_layer()
        rows = self.rows_of(adapter_name)
        if isinstance(base, nn.Embedding):
            return self._looked_up(base, places, rows, x, y, is_updated)
        if is_updated:
            change = rows - self._base_rows(places.ids).float()
            return y.index_add(-1, places.ids, F.linear(x, change.to(x.dtype)).to(y.dtype))
        bias = base.bias
        bias = None if bias is None else cast(Tensor, bias)[places.ids].to(x.dtype)
        logits = F.linear(x, rows.to(x.dtype), bias).to(y.dtype)
        # In place: y is new, and no product needs its own result for its gradient.
        return y.index_copy_(-1, places.ids, logits)

    def _looked_up(
        self,
        base: nn.Embedding,
        places: _Places,
        rows: Tensor,
        x: Tensor,
        y: Tensor,
        is_updated: bool,
    ) -> Tensor:
        nearest = torch.searchsorted(places.sorted_ids, x).clamp_(max=len(rows) - 1)
        is_own = (places.sorted_ids[nearest] == x).unsqueeze(-1)
        ids = places.rows[nearest]
        # The module itself looks the rows up, since some scale what they find. Its padding
        # token takes no gradient here either.
        padding = base.padding_idx
        tokens = places.ids.tolist() if padding is not None else []
        attributes = {"padding_idx": tokens.index(padding) if padding in tokens else None}
        weight = rows.to(base.weight.dtype)
        own = run_with(base, {"weight": weight}, ids, attributes=attributes)
        if not is_updated:
            return torch.where(is_own, own, y)
        return y + torch.where(is_own, own - base(x), 0)

    def _stand_in(self) -> nn.Module | None:
        held = self.__dict__.get("_modules", {}).get("token_adapter")
        return None if held is None else held.base_layer

    # ------------------------------------------------------------------------------- merging

    def weight_key(self) -> tuple[int, ...]:
        """The weight and the rows in it: a tied head has the same."""
        inside = self.inner.weight_key() if self.inner is not None else super().weight_key()
        if self.inner is None and self.own_active():
            inside = (id(self.get_base_layer().weight),)
        return (*inside, *(id(self.rows_of(name)) for name in self.own_active()))

    def merged_module(self, dtype: torch.dtype) -> nn.Module:
        """The base's module with the rows in its weight."""
        merged = plain_copy(self.base_layer, dtype)
        weight = cast(nn.Parameter, merged.weight)
        with torch.no_grad():
            merged._parameters["weight"] = nn.Parameter(self._put_rows(weight.data), False)
        return merged

    def merged_tensors(self, prefix: str, dtype: torch.dtype) -> Iterator[MergedTensor]:
        """The base's tensors with the rows in its weight."""
        for tensor in plain_tensors(prefix, self.base_layer, dtype):
            if tensor.name == f"{prefix}weight":
                compute = tensor.compute
                yield MergedTensor(
                    tensor.name,
                    tensor.shape,
                    tensor.dtype,
                    lambda compute=compute: self._put_rows(compute()),
                )
            else:
                yield tensor

    @torch.no_grad()
    def _put_rows(self, weight: Tensor) -> Tensor:
        """In place, the rows of the active adapters."""
        active = self.own_active()
        self.check_active(active)
        for name in active:
            ids = cast(_Places, self.token_adapter.token_places[name]).ids
            rows = self.rows_of(name)
            if self.inner is not None and self.inner.active_here():
                rows = weight[ids].float() + rows - self._base_rows(ids).float()
            weight[ids] = rows.to(weight.dtype)
        return weight
