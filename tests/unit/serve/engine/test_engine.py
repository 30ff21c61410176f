"""The engine against transformers' `generate`: whoever shares a step, the answer is the same."""

import random
import threading
import time

import pytest
import torch

from ince.errors import DrainingError, InceError, InputError, QueueFullError
from ince.serve.engine import Engine, Failed, Finished, GenerationRequest, PromptLogprobs, Started
from ince.serve.engine import Token as TokenEvent
from ince.serve.sampling import SamplingOptions


class Listener:
    """Collects events; `wait` until the end."""

    def __init__(self):
        self.events = []
        self.ended = threading.Event()

    def __call__(self, event):
        assert not self.ended.is_set(), "something came after the end"
        self.events.append(event)
        if isinstance(event, Finished | Failed):
            self.ended.set()

    def wait(self):
        assert self.ended.wait(60), "the request never ended"
        return self.events[-1]

    def finished(self):
        end = self.wait()
        assert isinstance(end, Finished), end
        return end

    @property
    def tokens(self):
        return [event.token for event in self.events if isinstance(event, TokenEvent)]

    @property
    def text(self):
        return "".join(event.text for event in self.events if isinstance(event, TokenEvent))


def greedy(prompt, max_tokens=8, **settings):
    request = {k: settings.pop(k) for k in ("tenant", "deadline", "cache_salt") if k in settings}
    options = SamplingOptions(max_tokens=max_tokens, temperature=0.0, **settings)
    return GenerationRequest("r", tuple(prompt), options, **request)


@torch.inference_mode()
def generate(model, prompt, max_tokens, stops=()):
    """What the model says alone, and whether it was ever nearly undecided."""
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=list(stops) or None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    gaps = []
    for logits in out.logits:
        top = logits[0].topk(2).values
        gaps.append(float(top[0] - top[1]))
    return out.sequences[0, len(prompt) :].tolist(), gaps


def draw_prompts(rng, count, vocabulary=100, longest=60):
    """Prompts of which many share a beginning."""
    beginnings = [[rng.randrange(vocabulary) for _ in range(40)] for _ in range(3)]
    prompts = []
    for _ in range(count):
        shared = rng.choice(beginnings)[: rng.choice([0, 16, 20, 40])]
        own = [rng.randrange(vocabulary) for _ in range(rng.randint(1, longest - 40))]
        prompts.append(shared + own)
    return prompts


def make_model(kind, **changes):
    """A tiny random model of another class than Llama; two layers, windows of 24 tokens."""
    import transformers

    config, model = {
        "mistral": ("MistralConfig", "MistralForCausalLM"),
        "gemma2": ("Gemma2Config", "Gemma2ForCausalLM"),
        "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
        "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
        "gpt_oss": ("GptOssConfig", "GptOssForCausalLM"),
        "qwen3_next": ("Qwen3NextConfig", "Qwen3NextForCausalLM"),
        "deepseek": ("DeepseekV3Config", "DeepseekV3ForCausalLM"),
    }[kind]
    settings = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 24,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    torch.manual_seed(1)
    made = getattr(transformers, model)(getattr(transformers, config)(**(settings | changes)))
    return made.requires_grad_(False).eval()


def run_and_compare(engine, references, requests):
    listeners = [Listener() for _ in requests]
    for request, listener in zip(requests, listeners, strict=True):
        engine.submit(request, listener)
    for listener, (tokens, _) in zip(listeners, references, strict=True):
        end = listener.finished()
        assert listener.tokens == tokens
        assert end.completion_tokens == len(tokens)
    return listeners


@pytest.fixture
def engine_of(small_tokenizer):
    """A function that makes an engine; all are closed afterwards."""
    made = []

    def make(model, *, start=True, **settings):
        usual = {"max_batch_tokens": 40, "max_running": 6, "kv_bytes": 1 << 20}
        engine = Engine(model, small_tokenizer, **(usual | settings))
        made.append(engine)
        if start:
            engine.start()
        return engine

    yield make
    for engine in made:
        engine.close()


SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("mistral", {}),
        ("gemma2", SLIDING),
        ("gemma3", SLIDING),
        ("qwen3", SLIDING | {"use_sliding_window": True}),
    ],
    ids=["llama", "mistral", "gemma2", "gemma3", "qwen3"],
)
def test_greedy_answers_are_those_of_generate(kind, changes, tiny_llama, engine_of):
    """Prompts in chunks, shared beginnings, and a cache so small that requests are put back."""
    model = tiny_llama() if kind == "llama" else make_model(kind, **changes)
    rng = random.Random(3)
    prompts = draw_prompts(rng, 10)
    lengths = [rng.randint(1, 30) for _ in prompts]
    stops = (5, 9)
    references = [
        generate(model, prompt, n, stops) for prompt, n in zip(prompts, lengths, strict=True)
    ]
    assert min(min(gaps) for _, gaps in references) > 1e-5, "the reference itself is undecided"
    engine = engine_of(model, kv_bytes=9 * block_bytes_of(model), stop_tokens=frozenset(stops))
    run_and_compare(
        engine, references, [greedy(p, n) for p, n in zip(prompts, lengths, strict=True)]
    )
    assert engine.drain(10)
    stats = engine.stats()
    assert stats.prefix_hit_tokens > 0
    assert stats.preemptions > 0
    assert stats.running == stats.waiting == stats.kv_blocks_used == 0


def block_bytes_of(model):
    from ince.serve.engine.forward import block_bytes, layer_shapes

    return block_bytes(layer_shapes(model), torch.float32)


def test_the_model_is_given_back_as_it_was(tiny_llama, engine_of):
    model = tiny_llama()
    model.train()
    prompt = torch.tensor([[5, 6, 7]])
    before = model(prompt).logits
    engine = engine_of(model)
    assert not model.training
    with pytest.raises(InceError, match="outside of its engine"):
        model(prompt)
    engine.close()
    assert model.training
    assert torch.equal(model(prompt).logits, before)


@pytest.mark.parametrize(
    ("kind", "changes", "what"),
    [
        ("gpt_oss", SLIDING | {"num_local_experts": 2}, "s_aux"),
        (
            "qwen3_next",
            {"layer_types": ["linear_attention", "full_attention"], "num_experts": 2},
            "linear_attention",
        ),
        ("gemma3", SLIDING | {"use_bidirectional_attention": True}, "both sides"),
    ],
    ids=["sinks", "linear", "both-sides"],
)
def test_what_is_not_computed_is_refused_by_name(kind, changes, what, small_tokenizer):
    model = make_model(kind, **changes)
    with pytest.raises(InceError, match=what):
        Engine(model, small_tokenizer, kv_bytes=1 << 20)
    assert model.config._attn_implementation != "ince_paged"


def test_prompt_logprobs_are_the_models_own(tiny_llama, engine_of):
    model = tiny_llama()
    prompt = [7 * i % 300 for i in range(75)]
    engine = engine_of(model, start=False)
    logprobs = torch.log_softmax(model_logits(model, engine, prompt), dim=-1)
    engine = engine_of(model)
    listener, again = Listener(), Listener()
    engine.submit(greedy(prompt, 2, prompt_logprobs=3, logprobs=1), listener)
    listener.finished()
    engine.submit(greedy(prompt, 2, prompt_logprobs=0), again)
    again.finished()
    (event,) = [e for e in listener.events if isinstance(e, PromptLogprobs)]
    assert event.logprobs[0] is None
    for place, found in enumerate(event.logprobs[1:], start=1):
        assert found.token == prompt[place]
        assert found.logprob == pytest.approx(float(logprobs[place - 1, prompt[place]]), abs=1e-4)
        assert len(found.top) == 3
    kinds = [type(e) for e in listener.events]
    assert kinds == [Started, PromptLogprobs, TokenEvent, TokenEvent, Finished]
    assert again.events[0] == Started(75, 0)


def model_logits(model, engine, prompt):
    engine.close()
    with torch.inference_mode():
        return model(torch.tensor([prompt])).logits[0]


def test_a_prompt_that_came_before_is_not_computed_again(tiny_llama, engine_of):
    model = tiny_llama()
    prompt = list(range(50, 90))
    tokens, _ = generate(model, prompt, 6)
    engine = engine_of(model)
    first, second, other = Listener(), Listener(), Listener()
    engine.submit(greedy(prompt, 6), first)
    assert first.finished().cached_tokens == 0
    engine.submit(greedy(prompt, 6), second)
    assert second.finished().cached_tokens == 32
    engine.submit(greedy(prompt, 6, tenant="b"), other)
    assert other.finished().cached_tokens == 0
    assert first.tokens == second.tokens == other.tokens == tokens


def test_an_answer_ends_at_stops_and_limits(tiny_llama, engine_of, small_tokenizer):
    model = tiny_llama(tie_word_embeddings=False)
    prompt = [400, 401, 402]
    tokens, _ = generate(model, prompt, 6)
    assert len(set(tokens)) == 6
    text = small_tokenizer.decode(tokens)
    engine = engine_of(model, stop_tokens=frozenset({tokens[3]}))

    def run(**settings):
        listener = Listener()
        engine.submit(greedy(prompt, 6, **settings), listener)
        return listener.finished(), listener

    end, heard = run()
    assert (end.reason, end.stop_reason, heard.tokens) == ("stop", None, tokens[:4])
    assert heard.text == small_tokenizer.decode(tokens[:3])
    end, heard = run(ignore_eos=True)
    assert (end.reason, end.stop_reason, heard.tokens) == ("length", None, tokens)
    assert heard.text == text
    end, heard = run(stop_token_ids=frozenset({tokens[1]}))
    assert (end.reason, end.stop_reason, heard.tokens) == ("stop", tokens[1], tokens[:2])
    stop = text[3:6]
    end, heard = run(ignore_eos=True, stop=(stop,))
    assert (end.reason, end.stop_reason) == ("stop", stop)
    assert heard.text == text[: text.index(stop)]


def test_requests_end_by_cancelling_and_by_deadline_in_any_state(tiny_llama, engine_of):
    model = tiny_llama()
    engine = engine_of(model, max_running=2)
    running = [Listener() for _ in range(2)]
    handles = [engine.submit(greedy([i], 400), heard) for i, heard in enumerate(running)]
    waiting, late, past = Listener(), Listener(), Listener()
    handle = engine.submit(greedy([9], 400), waiting)
    engine.submit(greedy([8], 400, deadline=time.monotonic() + 0.1), late)
    engine.submit(greedy([8], 400, deadline=time.monotonic() - 1), past)
    handle.cancel()
    assert waiting.finished().reason == "cancelled"
    assert waiting.finished().completion_tokens == 0
    assert late.finished().reason == past.finished().reason == "deadline"
    for one in handles:
        one.cancel()
        one.cancel()
    assert {heard.finished().reason for heard in running} == {"cancelled"}
    handles[0].cancel()
    assert engine.drain(10)
    assert engine.stats().kv_blocks_used == 0


def test_what_cannot_be_run_is_refused_before_it_starts(tiny_llama, engine_of):
    engine = engine_of(tiny_llama(), kv_bytes=1 << 16)
    room = engine.stats().kv_blocks_total * 16
    assert room < 512
    for request, message in (
        (greedy([1] * 500, 13), "model's context"),
        (greedy([1] * (room - 4), 5), "KV cache"),
        (greedy([1 << 20]), "no such token"),
        (greedy([1], logit_bias={1 << 20: 1.0}), "no such token"),
        (GenerationRequest("r", (1,), SamplingOptions(max_tokens=1), adapter="a"), "no adapters"),
    ):
        with pytest.raises(InputError, match=message):
            engine.submit(request, Listener())
    heard = Listener()
    engine.submit(greedy([1] * (room - 4), 4), heard)
    assert heard.finished().completion_tokens == 4


@pytest.mark.parametrize("prompt", [(), (1.0,), (-1,), (True,), ("a",)])
def test_a_prompt_is_of_token_ids(prompt):
    with pytest.raises(InputError):
        greedy(prompt)


def test_a_full_queue_and_a_stopping_server_refuse(tiny_llama, engine_of):
    engine = engine_of(tiny_llama(), start=False, max_running=2, max_waiting=3)
    heard = [Listener() for _ in range(5)]
    for listener in heard:
        engine.submit(greedy([1]), listener)
    with pytest.raises(QueueFullError) as caught:
        engine.submit(greedy([1]), Listener())
    assert 1 <= caught.value.retry_after <= 60
    assert engine.stats().waiting == 5
    assert not engine.drain(0.0)
    with pytest.raises(DrainingError):
        engine.submit(greedy([1]), Listener())
    engine.start()
    assert engine.drain(30)
    assert all(listener.finished().reason == "length" for listener in heard)


def test_closing_fails_what_is_left_in_every_state(tiny_llama, engine_of):
    model = tiny_llama()
    never = engine_of(model, start=False)
    heard = Listener()
    never.submit(greedy([1]), heard)
    never.close()
    never.close()
    assert isinstance(heard.wait().error, DrainingError)
    with pytest.raises(DrainingError):
        never.start()
    engine = engine_of(model)
    many = [Listener() for _ in range(20)]
    for listener in many:
        engine.submit(greedy([1], 400), listener)
    engine.close()
    assert all(isinstance(listener.wait().error, DrainingError) for listener in many)
    with pytest.raises(DrainingError):
        engine.submit(greedy([1]), Listener())
    assert engine.drain(1)


def test_an_engine_can_be_closed_from_a_listener(tiny_llama, engine_of):
    engine = engine_of(tiny_llama())
    ended = threading.Event()

    def listener(event):
        engine.close()
        if isinstance(event, Failed):
            ended.set()

    engine.submit(greedy([1], 400), listener)
    assert ended.wait(30)
    engine.close()


def test_an_idle_engine_sleeps(tiny_llama, engine_of):
    engine = engine_of(tiny_llama())
    heard = Listener()
    engine.submit(greedy([1], 2), heard)
    heard.finished()
    engine.drain(5)
    turns = []
    step = engine._runner.step
    engine._runner.step = lambda: turns.append(1) or step()
    time.sleep(0.15)
    assert turns == []
    assert engine._thread.is_alive()
