"""Where ``trainable_token_indices`` puts rows of their own.

A list means the input embedding; by names, other modules can be meant. Modules that share the
embedding's weight follow it, as in PEFT: they use its rows, and a file holds them once.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torch import nn

from ince.errors import ConfigError, Problem, did_you_mean
from ince.lora.config import PeftConfig
from ince.lora.layers.adapted import PREFIX, Adapted, base_of, outer_modules
from ince.lora.layers.given import GivenTensors
from ince.lora.layers.state import AdapterState
from ince.lora.layers.token_rows import TokenRows
from ince.lora.layers.wrapper import part_of
from ince.lora.placement.tied import input_embedding_name, keeps_tied, tied_names
from ince.quant import Linear4bit

__all__ = ["TokenPlace", "find_token_rows", "with_tokens_of_ties"]

_Config = TypeVar("_Config", bound=PeftConfig)

_FIELD = "trainable_token_indices"
_MAX_TOKENS_SHOWN = 8


@dataclass
class TokenPlace:
    """A module of which some tokens' rows are the adapter's."""

    name: str
    module: nn.Module
    token_ids: tuple[int, ...]
    tied_to: "TokenPlace | None" = None
    """Whose rows are used."""
    _made: TokenRows | None = field(default=None, repr=False)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The rows; nothing for a module that uses another's."""
        if self.tied_to is not None:
            return {}
        key = f"{PREFIX}{self.name}.token_adapter.trainable_tokens_delta"
        return {key: (len(self.token_ids), _weight_shape(base_of(self.module))[1])}

    def wrap(self, module: nn.Module, state: AdapterState) -> Adapted:
        """A `TokenRows`."""
        return TokenRows.around(module, state)

    def add(
        self,
        adapted: Adapted,
        adapter_name: str,
        given: GivenTensors | None = None,  # noqa: ARG002
    ) -> Collection[str]:
        """The rows, as the base has them."""
        self._made = part_of(adapted, TokenRows)
        tied_to = None if self.tied_to is None else self.tied_to._made
        self._made.add_adapter(adapter_name, self.token_ids, tied_to)
        return ()

    def start(self, adapted: Adapted, adapter_name: str, config: PeftConfig) -> None:
        """They start as the base's."""


def with_tokens_of_ties(model: nn.Module, config: _Config, *, fresh: bool) -> _Config:
    """`config` with the tokens of a tied head said of the embedding, which the head follows."""
    tokens = getattr(config, _FIELD, None)
    if not isinstance(tokens, Mapping) or not fresh or not keeps_tied(config, fresh=fresh):
        return config
    embedding = input_embedding_name(model)
    tied = tied_names(model)
    named = {entry: _meant(model, entry) for entry in tokens}
    group = tied.get(embedding or "", ())
    mine = [entry for entry, names in named.items() if set(names) & set(group)]
    if embedding is None or not mine or any(embedding in named[entry] for entry in mine):
        return config
    if len({tuple(tokens[entry]) for entry in mine}) > 1:
        return config  # different tokens, said in so many words
    kept = {entry: ids for entry, ids in tokens.items() if entry not in mine}
    return config.model_copy(update={_FIELD: {**kept, embedding: tokens[mine[0]]}})


def find_token_rows(
    model: nn.Module, config: PeftConfig, saved: Collection[str]
) -> list[TokenPlace]:
    """The modules with rows of their own; those that follow another after it.

    Args:
        model: the base, with or without adapters.
        config: with the tokens of ties.
        saved: names of modules that are trained whole.

    Raises:
        ConfigError: a name that means nothing, a module without rows for tokens, or tokens
            that it does not have.
    """
    wanted = getattr(config, _FIELD, None)
    if wanted is None:
        return []
    modules = dict(outer_modules(model))
    places: dict[str, TokenPlace] = {}
    for name, ids in _by_module(model, wanted).items():
        if name in saved:
            raise ConfigError(
                "the config trains some rows of a module and the whole of it",
                where=type(model).__name__,
                problems=[Problem(_FIELD, f"{name} is in modules_to_save")],
            )
        _check_tokens(name, modules[name], ids)
        places[name] = TokenPlace(name, modules[name], ids)
    group = tied_names(model).get(input_embedding_name(model) or "", ())
    first = places.get(group[0]) if group else None
    own = {places[name].token_ids for name in group if name in places}
    if first is not None and len(own) > 1 and getattr(config, "ensure_weight_tying", False):
        raise ConfigError(
            "tied modules cannot have different tokens",
            where=type(model).__name__,
            problems=[
                Problem(_FIELD, f"differs between {', '.join(n for n in group if n in places)}")
            ],
            do="give them the same tokens, or set ensure_weight_tying=False",
        )
    if first is not None and len(own) == 1:
        for name in group[1:]:
            if name not in saved:
                places[name] = TokenPlace(name, modules[name], first.token_ids, tied_to=first)
    return sorted(places.values(), key=lambda place: place.tied_to is not None)


def _by_module(
    model: nn.Module, wanted: Sequence[int] | Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    if not isinstance(wanted, Mapping):
        embedding = input_embedding_name(model)
        if embedding is None:
            raise ConfigError(
                "the model does not say which module embeds its tokens",
                where=type(model).__name__,
                problems=[Problem(_FIELD, "is a list", "give a table of lists by module name")],
            )
        return {embedding: tuple(wanted)}
    known = [name for name, _ in outer_modules(model) if name]
    leaves = sorted({name.rpartition(".")[2] for name in known})
    problems: list[Problem] = []
    found: dict[str, tuple[int, ...]] = {}
    for entry, ids in wanted.items():
        names = _meant(model, entry)
        if not names:
            near = did_you_mean(entry.rpartition(".")[2], leaves)
            problems.append(Problem(f"{_FIELD}.{entry}", "matches no module", near))
        found.update(dict.fromkeys(names, tuple(ids)))
    if problems:
        raise ConfigError(
            "the config names modules that the model does not have",
            where=type(model).__name__,
            problems=problems,
        )
    return found


def _meant(model: nn.Module, entry: str) -> list[str]:
    return [name for name, _ in outer_modules(model) if name and name.endswith(entry)]


def _check_tokens(name: str, module: nn.Module, ids: Sequence[int]) -> None:
    base = base_of(module)
    if not isinstance(base, nn.Embedding | nn.Linear | Linear4bit) or (
        isinstance(base, nn.Embedding) and base.max_norm is not None
    ):
        raise ConfigError(
            "this module has no rows for tokens that could be trained",
            where=name,
            got=type(base).__name__,
            expected="an embedding, or an output head",
        )
    num_tokens = _weight_shape(base)[0]
    outside = [token for token in ids if not 0 <= token < num_tokens]
    if outside:
        more = ", …" if len(outside) > _MAX_TOKENS_SHOWN else ""
        raise ConfigError(
            "there are no such tokens",
            where=name,
            problems=[Problem(_FIELD, ", ".join(map(str, outside[:_MAX_TOKENS_SHOWN])) + more)],
            expected=f"ids from 0 to {num_tokens - 1}",
            do="call model.resize_token_embeddings for new tokens first",
        )
    if len(set(ids)) < len(ids):
        twice = sorted({token for token in ids if ids.count(token) > 1})
        raise ConfigError(
            "a token is named twice",
            where=name,
            problems=[Problem(_FIELD, ", ".join(map(str, twice[:_MAX_TOKENS_SHOWN])))],
        )


def _weight_shape(base: nn.Module) -> tuple[int, int]:
    if isinstance(base, Linear4bit):
        rows, width = base.weight_shape
    else:
        rows, width = base.weight.shape  # pyright: ignore[reportGeneralTypeIssues]
    return int(rows), int(width)
