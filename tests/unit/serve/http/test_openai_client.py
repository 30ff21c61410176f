"""The client that users have: sync, async, streaming, and the errors it raises."""

import asyncio

import httpx2 as httpx
import openai
import pytest

QUESTION = [{"role": "user", "content": "Say numbers"}]


def test_a_chat_with_the_base_and_with_an_adapter(serve, engine):
    client = serve().client()
    answer = client.chat.completions.create(model="tiny", messages=QUESTION)
    assert answer.choices[0].message.content == "one two three four"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 4
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 4
    turkish = client.chat.completions.create(model="turkish", messages=QUESTION)
    assert turkish.choices[0].message.content == "bir iki üç dört"
    assert [request.adapter for request in engine.requests] == [None, "a" * 64]


def test_a_stream_begins_with_the_role_and_ends_with_usage(serve):
    client = serve().client()
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    said = [chunk.choices[0].delta.content for chunk in chunks[1:-2]]
    assert said == ["one", " two", " three", " four"]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 4
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_is_what_the_whole_answer_is(serve):
    client = serve().client()
    asked = {"model": "tiny", "messages": QUESTION, "n": 3, "seed": 5}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    texts, logprobs = ["", "", ""], [[], [], []]
    for chunk in client.chat.completions.create(
        **asked, logprobs=True, top_logprobs=2, stream=True
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.logprobs:
                logprobs[choice.index] += choice.logprobs.content
    assert texts == [choice.message.content for choice in whole.choices]
    assert logprobs == [choice.logprobs.content for choice in whole.choices]
    first = whole.choices[0].logprobs.content[0]
    assert (first.token, bytes(first.bytes)) == ("one", b"one")
    assert len(first.top_logprobs) == 2


def test_the_async_client(serve):
    url = serve().url

    async def ask():
        async with httpx.AsyncClient(trust_env=False) as http:
            client = openai.AsyncOpenAI(
                base_url=url + "/v1", api_key="none", http_client=http, max_retries=0
            )
            whole, stream = await asyncio.gather(
                client.chat.completions.create(model="turkish", messages=QUESTION),
                client.chat.completions.create(model="tiny", messages=QUESTION, stream=True),
            )
            text = "".join([c.choices[0].delta.content or "" async for c in stream])
            return whole.choices[0].message.content, text

    assert asyncio.run(ask()) == ("bir iki üç dört", "one two three four")


def test_options_reach_the_engine(serve, engine):
    serve().client().chat.completions.create(
        model="tiny",
        messages=QUESTION,
        max_completion_tokens=3,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"5": 2},
        seed=7,
        stop=["x", "y"],
        n=2,
        extra_body={
            "top_k": 4,
            "min_p": 0.1,
            "repetition_penalty": 1.2,
            "ignore_eos": True,
            "stop_token_ids": [9],
            "cache_salt": "mine",
        },
    )
    first, second = engine.requests
    options = first.options
    assert (options.max_tokens, options.temperature, options.top_p) == (3, 0.5, 0.9)
    assert (options.presence_penalty, options.frequency_penalty) == (1, -1)
    assert (dict(options.logit_bias), options.stop) == ({5: 2}, ("x", "y"))
    assert (options.top_k, options.min_p, options.repetition_penalty) == (4, 0.1, 1.2)
    assert (options.ignore_eos, options.stop_token_ids) == (True, frozenset({9}))
    assert (options.seed, second.options.seed) == (7, 8)
    assert first.cache_salt == "mine"
    assert first.prompt == second.prompt


def test_without_a_limit_an_answer_may_fill_the_context(serve, engine):
    client = serve().client()
    client.chat.completions.create(model="tiny", messages=QUESTION)
    request = engine.requests[0]
    assert request.options.max_tokens == 256 - len(request.prompt)


def test_completions_of_texts_and_token_ids(serve, engine, small_tokenizer):
    client = serve().client()
    text = "It is"
    tokens = small_tokenizer(text)["input_ids"]
    for prompt in (text, [text], tokens, [tokens]):
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=2)
        assert answer.choices[0].text == "one two"
        assert answer.choices[0].finish_reason == "length"
    assert {request.prompt for request in engine.requests} == {tuple(tokens)}
    several = client.completions.create(model="tiny", prompt=["a", "b c"], n=2)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.usage.prompt_tokens == 3


def test_an_echo_with_the_prompts_log_probabilities(serve, small_tokenizer):
    client = serve().client()
    tokens = small_tokenizer("It is so")["input_ids"]
    choice = client.completions.create(
        model="tiny", prompt=[tokens], echo=True, logprobs=1, max_tokens=1
    ).choices[0]
    assert choice.text == "It is soone"
    found = choice.logprobs
    assert found.tokens == ["It", " is", " so", "one"]
    assert found.token_logprobs == [None, -0.5, -0.5, -0.5]
    assert found.top_logprobs[0] is None
    assert found.top_logprobs[1] == {" is": -0.5}
    assert found.text_offset == [0, 2, 5, 8]
    alone = client.completions.create(
        model="tiny", prompt=[tokens], echo=True, logprobs=1, max_tokens=0
    ).choices[0]
    assert (alone.text, len(alone.logprobs.tokens)) == ("It is so", 3)


def test_a_streamed_completion_ends_at_its_stop(serve):
    client = serve().client()
    chunks = list(
        client.completions.create(
            model="tiny", prompt="count", stop=" three", stream=True, echo=True
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == "countone two"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_models(serve):
    client = serve().client()
    listed = {model.id: model for model in client.models.list()}
    assert list(listed) == ["tiny", "turkish"]
    assert listed["turkish"].root == "a" * 64
    assert client.models.retrieve("turkish").parent == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"temperature": -1}, "temperature"),
        ({"n": 0}, "n:"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"extra_body": {"temprature": 1}}, "did you mean 'temperature'"),
        ({"extra_body": {"tools": [{"type": "function"}]}}, "tools"),
        ({"extra_body": {"guided_regex": "a", "guided_choice": ["b"]}}, "has one form"),
        ({"extra_body": {"guided_regex": "(((("}}, "grammar"),
        ({"extra_body": {"chat_template_kwargs": {"tokenize": True}}}, "tokenize"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "surrogate"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content"),
        ({"messages": [{"role": "user", "content": "a " * 500}]}, "maximum context length"),
        ({"max_tokens": 256}, "maximum context length"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"extra_headers": {"X-Request-Timeout": "soon"}}, "X-Request-Timeout"),
        ({"stop": [""]}, "stop"),
        ({"n": 128, "extra_body": {"max_tokens": 1}}, None),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_name(serve, asked, says, engine):
    client = serve().client()
    request = {"model": "tiny", "messages": QUESTION, **asked}
    if says is None:
        assert len(client.chat.completions.create(**request).choices) == 128
        return
    with pytest.raises((openai.BadRequestError, ValueError)) as caught:
        client.chat.completions.create(**request)
    if isinstance(caught.value, openai.BadRequestError):
        assert says in caught.value.message
        assert caught.value.type == "invalid_request_error"
    assert engine.requests == []
