"""A live server over an engine that says what its prompt and adapter make it say."""

import dataclasses
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import httpx2 as httpx
import openai
import pytest

from ince.errors import DrainingError, InputError, QueueFullError
from ince.infer.stream import PieceDecoder
from ince.serve.engine.events import Failed, Finished, PromptLogprobs, Started, Token
from ince.serve.http import HttpSettings, NamedAdapter, create_app
from ince.serve.http.app import service_of
from ince.serve.http.server import bind, make_server
from ince.serve.sampling import TokenLogprob

BASE = "tiny"


class FakeEngine:
    """Answers with the words of the adapter, over and over; a thread for each request."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.requests = []
        self.cancelled = []
        self.words = {}
        self.go = threading.Event()
        self.go.set()
        self.token_seconds = 0.0
        self.text_factor = 1
        self.max_waiting = 10**9
        self.failure = None
        self.num_running = 0
        self.draining = False
        self.closed = threading.Event()
        self.weights = {}
        self.lock = threading.Lock()

    def submit(self, request, listener):
        if self.draining:
            raise DrainingError("stopping")
        if self.num_running >= self.max_waiting:
            raise QueueFullError("the queue is full", retry_after=7)
        if len(request.prompt) + request.options.max_tokens > 100_000:
            raise InputError("the KV cache is smaller")
        with self.lock:
            self.num_running += 1
            self.requests.append(request)
        stop = threading.Event()
        thread = threading.Thread(target=self._run, args=(request, listener, stop), daemon=True)
        thread.start()

        def cancel():
            self.cancelled.append(request.request_id)
            stop.set()
            self.go.set()

        return SimpleNamespace(cancel=cancel)

    def _run(self, request, listener, stop):
        try:
            self._say(request, listener, stop)
        finally:
            with self.lock:
                self.num_running -= 1

    def _say(self, request, listener, stop):
        options, prompt = request.options, request.prompt
        listener(Started(len(prompt), 0))
        if options.prompt_logprobs is not None:
            found = [None, *(self._logprob(token, options.prompt_logprobs) for token in prompt[1:])]
            listener(PromptLogprobs(found))
        if self.failure is not None:
            listener(Failed(self.failure))
            return
        words = self.words.get(request.adapter, "one two three four")
        tokens = self.tokenizer(words, add_special_tokens=False)["input_ids"]
        reason, stop_reason, said, count = "stop", None, "", 0
        pieces = PieceDecoder(self.tokenizer)
        for count, token in enumerate(tokens, start=1):
            self.go.wait(10)
            if self.token_seconds:
                stop.wait(self.token_seconds)
            if self.closed.is_set():
                listener(Failed(DrainingError("the engine is closed")))
                return
            if stop.is_set():
                reason, count = "cancelled", count - 1
                break
            if request.deadline is not None and time.monotonic() > request.deadline:
                reason, count = "deadline", count - 1
                break
            text = pieces.add(token)
            ended = next((each for each in options.stop if each in said + text), None)
            if ended is not None:
                stop_reason = ended
                break
            said += text
            logprob = None
            if options.logprobs is not None:
                logprob = self._logprob(token, options.logprobs)
            listener(Token(token, text * self.text_factor, logprob))
            if count == options.max_tokens:
                reason = "length"
                break
        listener(Finished(reason, stop_reason, len(prompt), count, 0))

    def _logprob(self, token, num_top):
        top = tuple((token + i, -0.5 - i) for i in range(num_top))
        return TokenLogprob(token, -0.5, top)

    def drain(self, timeout):
        self.draining = True
        until = time.monotonic() + timeout
        while self.num_running and time.monotonic() < until:
            time.sleep(0.01)
        return not self.num_running

    def close(self):
        self.draining = True
        self.closed.set()
        self.go.set()

    def set_tenant_weights(self, weights):
        self.weights = dict(weights)

    def stats(self):
        return SimpleNamespace(
            running=self.num_running,
            waiting=0,
            running_by_adapter={None: 1, "a" * 64: 2},
            waiting_by_adapter={},
            kv_blocks_used=1,
            kv_blocks_total=4,
            prefix_hit_tokens=0,
            preemptions=0,
            steps=1,
            tokens=2,
            step_seconds=0.5,
            adapters={"hits": 3, "bytes": {"device": 5, "memory": 7}},
        )


class FakeDirectory:
    """Names by tenant; `shared` are everybody's."""

    def __init__(self, shared=None, without_base=(), **owned):
        self.shared, self.owned, self.without_base = dict(shared or {}), owned, without_base

    def adapters(self, tenant):
        names = {**self.shared, **self.owned.get(tenant, {})}
        return {n: NamedAdapter(n, d, 1_700_000_000, tenant) for n, d in names.items()}

    def may_use_base(self, tenant):
        return tenant not in self.without_base

    def names_of(self, digests):
        everything = {**self.shared}
        for names in self.owned.values():
            everything.update(names)
        named = {digest: name for name, digest in everything.items()}
        return [named.get(digest, digest) for digest in digests]


class FakeTenants:
    """Keys in the clear."""

    def __init__(self, **callers):
        self.callers = callers
        self.usage = {}

    def authenticate(self, secret):
        return self.callers.get(secret)

    def known(self, secret):
        return None

    def wants_keys(self):
        return True

    def weights(self):
        return {}

    def record_usage(self, used):
        for each in used:
            mine = self.usage.setdefault((each.tenant, each.adapter), [0, 0, 0])
            mine[0] += each.requests
            mine[1] += each.prompt_tokens
            mine[2] += each.completion_tokens


@contextmanager
def running(app, engine):
    """The application behind a socket, in a thread."""
    server = make_server(app, engine, drain_seconds=10)
    ready = threading.Event()
    server.on_ready = ready.set
    bound = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}", server
    finally:
        if isinstance(engine, FakeEngine):
            engine.go.set()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def engine(small_tokenizer):
    made = FakeEngine(small_tokenizer)
    made.words["a" * 64] = "bir iki üç dört"
    return made


@pytest.fixture
def serve(engine, small_tokenizer):
    """A function that starts a server and gives what talks to it."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(*, directory=None, tenants=None, **changes):
            more = {
                name: changes.pop(name)
                for name in ("shelf", "loader", "adapters_folder")
                if name in changes
            }
            settings = dataclasses.replace(HttpSettings(BASE, 256), **changes)
            app = create_app(
                engine,
                small_tokenizer,
                FakeDirectory({"turkish": "a" * 64}) if directory is None else directory,
                tenants,
                settings,
                num_slots=4,
                **more,
            )
            url, server = stack.enter_context(running(app, engine))
            http = stack.enter_context(httpx.Client(base_url=url, timeout=20, trust_env=False))

            def client(key="none", **options):
                return openai.OpenAI(
                    base_url=url + "/v1",
                    api_key=key,
                    http_client=stack.enter_context(httpx.Client(trust_env=False)),
                    **{"max_retries": 0, "timeout": 20, **options},
                )

            return SimpleNamespace(
                url=url,
                http=http,
                client=client,
                server=server,
                app=app,
                service=service_of(app),
            )

        yield start


@pytest.fixture
def fakes():
    return SimpleNamespace(Directory=FakeDirectory, Tenants=FakeTenants)
