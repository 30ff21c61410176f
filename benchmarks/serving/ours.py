"""ince's engine in this process, and requests through `Engine.submit`."""

import contextlib
import threading
import time

import torch

from ince.serve.adapters import AdapterTiers, serve_layers
from ince.serve.engine import Engine, Failed, Finished, GenerationRequest, Started, Token
from ince.serve.sampling import SamplingOptions
from serving.timeline import Timeline


class Ours:
    """An engine with adapters.

    Args:
        model, tokenizer: the base; the engine's until `close`.
        source: an `AdapterSource`; None for the base alone.
        num_slots, memory_bytes: of the adapters' tiers.
        max_running, max_batch_tokens, kv_bytes: of the engine.
        block_dtype: of packed adapters.
    """

    def __init__(
        self,
        model,
        tokenizer,
        source=None,
        *,
        num_slots=512,
        memory_bytes=6 << 30,
        max_running=32,
        max_batch_tokens=256,
        kv_bytes=1 << 30,
        block_dtype=torch.float32,
    ):
        self._open = contextlib.ExitStack()
        self.tiers = None
        if source is not None:
            served = serve_layers(model)
            self._open.callback(served.close)
            self.tiers = AdapterTiers(
                served,
                source,
                num_slots=num_slots,
                memory_bytes=memory_bytes,
                block_dtype=block_dtype,
            )
            self._open.callback(self.tiers.close)
        self.engine = Engine(
            model,
            tokenizer,
            adapters=self.tiers,
            kv_bytes=kv_bytes,
            max_running=max_running,
            max_batch_tokens=max_batch_tokens,
            max_waiting=4096,
        )
        self._open.enter_context(self.engine)
        self._number = 0

    def close(self):
        self._open.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def warm(self, digests):
        """Have these adapters in memory; returns the seconds that it took."""
        begun = time.perf_counter()
        for digest in digests:
            self.tiers.prefetch(digest)
        while any(self.tiers.state(digest) in ("loading", "disk") for digest in digests):
            time.sleep(0.02)
        errors = [self.tiers.error(digest) for digest in digests]
        if any(errors):
            raise SystemExit(str(next(error for error in errors if error)))
        return time.perf_counter() - begun

    def submit(self, asked, *, digest, salt="", tenant="", on_end=None):
        """Send one; returns its `Timeline`, which fills."""
        self._number += 1
        options = SamplingOptions(max_tokens=asked.num_new, temperature=0.0, ignore_eos=True)
        request = GenerationRequest(
            f"r{self._number}",
            asked.prompt,
            options,
            adapter=digest,
            tenant=tenant,
            cache_salt=salt,
        )
        line = Timeline()

        def listen(event):
            if isinstance(event, Token):
                line.token(event.token)
            elif isinstance(event, Started):
                line.cached = event.cached_tokens
            elif isinstance(event, (Finished, Failed)):
                line.error = getattr(event, "error", None)
                line.ended = time.perf_counter()
                if on_end is not None:
                    on_end()

        self.engine.submit(request, listen)
        return line

    def run(self, requests, digests, *, salt, times=None, tenant=""):
        """Send all at once, or each at its time; returns their timelines when all have ended.

        Args:
            digests: of adapters, by the requests' numbers.
            salt: of this run: what earlier ones computed is not met.
            times: seconds after the beginning.
        """
        left = threading.Semaphore(0)
        lines = []
        begun = time.perf_counter()
        for number, asked in enumerate(requests):
            if times is not None:
                time.sleep(max(0.0, begun + times[number] - time.perf_counter()))
            digest = None if asked.adapter is None else digests[asked.adapter]
            lines.append(
                self.submit(asked, digest=digest, salt=salt, tenant=tenant, on_end=left.release)
            )
        for _ in requests:
            left.acquire()
        return lines
