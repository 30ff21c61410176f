"""`opened`: an engine over a model, with adapters from a source, put together and taken apart.

What serves many over HTTP and what talks to one person in this process begin here, so that the
order is written once: the model's layers learn to apply adapters before the engine takes its
attention, and everything is given back in the opposite order, whatever happens in between.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ince.infer.prompt import stop_tokens
from ince.serve.adapters import AdapterSource, AdapterTiers, serve_layers
from ince.serve.engine import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Opened", "opened"]


@dataclass(frozen=True)
class Opened:
    """What runs.

    Attributes:
        engine: started.
        tiers: of its adapters; None for the base alone.
    """

    engine: Engine
    tiers: AdapterTiers | None


@contextmanager
def opened(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    source: AdapterSource | None = None,
    num_slots: int = 32,
    adapter_bytes: int = 1 << 30,
    kv_bytes: int | None = None,
    max_batch_tokens: int = 512,
    max_running: int = 64,
    max_waiting: int = 1024,
    tenant_weights: Mapping[str, float] | None = None,
) -> Iterator[Opened]:
    """Inside, the model is the engine's; afterwards it is as it was.

    Args:
        model: the base, without adapters.
        tokenizer: its own.
        source: of adapters, by digest; None for none.
        num_slots: adapters on the device at once.
        adapter_bytes: of adapters in memory.
        kv_bytes, max_batch_tokens, max_running, max_waiting, tenant_weights: see `Engine`.

    Raises:
        ModelReferenceError: the engine does not compute some layer of the model.
        InputError: a number out of range.
        ProofError: the model's logits are others in the engine than alone.
    """
    with ExitStack() as stack:
        tiers = None
        if source is not None:
            served = serve_layers(model)
            stack.callback(served.close)
            tiers = AdapterTiers(served, source, num_slots=num_slots, memory_bytes=adapter_bytes)
            stack.callback(tiers.close)
        engine = Engine(
            model,
            tokenizer,
            adapters=tiers,
            kv_bytes=kv_bytes,
            max_batch_tokens=max_batch_tokens,
            max_running=max_running,
            max_waiting=max_waiting,
            stop_tokens=stop_tokens(model, tokenizer),
            tenant_weights=tenant_weights,
        )
        yield Opened(stack.enter_context(engine), tiers)
