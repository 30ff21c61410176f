"""`ince serve` as a user runs it: a process, a socket, signals, and the answers of `generate`."""

import asyncio
import json
import os
import re
import select
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import openai
import pytest
import torch

from ince.infer import generate
from ince.lora import LoraConfig, PeftModel, get_peft_model
from ince.models import load_model
from ince.registry import Registry

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

REST = ("--port", "0", "--dtype", "float32", "--device", "cpu", "--json")
QUESTIONS = ("What is one and two?", "Say something about the sea.", "Merhaba!")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, small_tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(small_tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).save_pretrained(folder)
    small_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("adapters")
    for seed, rank in ((1, 2), (2, 8)):
        base, _ = load_model(model_folder, dtype=torch.float32)
        model = get_peft_model(base, LoraConfig(r=rank, target_modules="all-linear"))
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.3)
        model.save_pretrained(folder / f"a{seed}")
    return folder


@contextmanager
def serving(*arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "ince.cli", "serve", *map(str, arguments), *REST],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    try:
        ready, _, _ = select.select([process.stdout], [], [], 300)
        line = process.stdout.readline() if ready else ""
        assert line, process.stderr.read() if process.poll() is not None else "not ready"
        yield process, json.loads(line)["url"]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=20)


@pytest.fixture(scope="module")
def server(model_folder, adapters):
    with serving(
        model_folder, "--name", "base", "--adapters", adapters, "--kv-memory", "16MiB"
    ) as found:
        yield found


@pytest.fixture
def client(server):
    with httpx.Client(trust_env=False) as http:
        yield openai.OpenAI(
            base_url=server[1] + "/v1", api_key="none", http_client=http, max_retries=0, timeout=60
        )


def alone(model_folder, adapters, name):
    model, tokenizer = load_model(model_folder, dtype=torch.float32)
    if name != "base":
        model = PeftModel.from_pretrained(model, adapters / name).eval()
    from ince.data import Message

    conversations = [[Message("user", question)] for question in QUESTIONS]
    found = generate(model, tokenizer, conversations, max_new_tokens=16)
    return [each.text for each in found]


def test_many_at_once_say_what_each_says_alone(client, model_folder, adapters):
    expected = {name: alone(model_folder, adapters, name) for name in ("base", "a1", "a2")}
    assert len({tuple(answers) for answers in expected.values()}) == 3
    answers = {}

    def ask(name, number):
        answers[name, number] = (
            client.chat.completions.create(
                model=name,
                messages=[{"role": "user", "content": QUESTIONS[number % 3]}],
                temperature=0,
                max_tokens=16,
            )
            .choices[0]
            .message.content
        )

    threads = [
        threading.Thread(target=ask, args=(name, number))
        for number in range(6)
        for name in ("a1", "base", "a2")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 18
    for (name, number), answer in answers.items():
        assert answer == expected[name][number % 3]


def test_a_schema_binds_the_answer(client):
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="a1",
        messages=[{"role": "user", "content": "JSON"}],
        max_tokens=40,
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
    )
    assert json.loads(answer.choices[0].message.content) in ({"a": "x"}, {"a": "y"})


def test_what_does_not_fit_is_refused_before_it_starts(client):
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        client.completions.create(model="base", prompt="a " * 600, max_tokens=5)


def test_the_log_probabilities_of_a_prompt_are_the_models(client, model_folder):
    model, tokenizer = load_model(model_folder, dtype=torch.float32)
    tokens = tokenizer("The sea is deep and cold")["input_ids"]
    found = client.completions.create(
        model="base", prompt=[tokens], echo=True, logprobs=1, max_tokens=1
    ).choices[0]
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0]
    expected = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    assert found.logprobs.token_logprobs[0] is None
    torch.testing.assert_close(
        torch.tensor(found.logprobs.token_logprobs[1 : len(tokens)]), expected, atol=1e-4, rtol=0
    )
    best = logits[:-1].log_softmax(-1).amax(-1)
    tops = [max(top.values()) for top in found.logprobs.top_logprobs[1 : len(tokens)]]
    torch.testing.assert_close(torch.tensor(tops), best, atol=1e-4, rtol=0)


def test_metrics_of_the_real_engine(server):
    text = httpx.get(server[1] + "/metrics", trust_env=False).text
    assert "ince_kv_blocks " in text
    assert "ince_adapter_loads" in text
    assert "vllm:lora_requests_info" in text


async def flood(url, body, num_requests):
    """Status and head of each of so many at once, and the seconds that `/health` took meanwhile."""
    host, port = url.removeprefix("http://").split(":")
    begun, over = asyncio.Event(), asyncio.Event()

    async def ask(head, content=b""):
        reader, writer = await asyncio.open_connection(host, int(port))
        begun.set()
        writer.write(head.encode() + b"\r\nHost: localhost\r\nConnection: close\r\n")
        writer.write(b"Content-Type: application/json\r\nContent-Length: %d" % len(content))
        writer.write(b"\r\n\r\n" + content)
        answer = await reader.read()
        writer.close()
        head, _, rest = answer.decode().partition("\r\n\r\n")
        return int(head.split(" ", 2)[1]), head.lower(), json.loads(rest)

    async def watch():
        seconds = []
        await begun.wait()
        while not over.is_set():
            start = time.perf_counter()
            assert (await ask("GET /health HTTP/1.1"))[0] == 200
            seconds.append(time.perf_counter() - start)
            await asyncio.sleep(0.02)
        return seconds

    watching = asyncio.create_task(watch())
    content = json.dumps(body).encode()
    asked = [ask("POST /v1/completions HTTP/1.1", content) for _ in range(num_requests)]
    answers = await asyncio.gather(*asked)
    over.set()
    return answers, await watching


def test_a_flood_is_answered_or_told_when_to_come_back_and_health_answers_meanwhile(model_folder):
    bounds = ("--name", "base", "--max-running", "32", "--max-waiting", "200", "--quiet")
    with serving(model_folder, *bounds) as (process, url):
        body = {"model": "base", "prompt": "one", "max_tokens": 8, "ignore_eos": True}
        answers, seconds = asyncio.run(flood(url, body, 800))
        statuses = Counter(status for status, _, _ in answers)
        assert set(statuses) == {200, 429}
        assert statuses[200] >= 232
        for status, head, found in answers:
            if status == 200:
                assert found["usage"]["completion_tokens"] == 8
            else:
                assert found["error"]["code"] == "queue_full"
                assert 1 <= int(re.search(r"\r\nretry-after: (\d+)", head)[1]) <= 60
        assert statistics.median(seconds) < 2
        metrics = httpx.get(url + "/metrics", trust_env=False).text
        assert "vllm:num_requests_waiting 0.0" in metrics
        assert process.poll() is None


def test_sigterm_under_load_finishes_and_ends_with_zero(model_folder):
    with serving(model_folder, "--name", "base") as (process, url):
        with httpx.Client(trust_env=False, timeout=60) as http:
            asked = {"model": "base", "prompt": "one", "max_tokens": 300, "ignore_eos": True}
            with http.stream(
                "POST", url + "/v1/completions", json=asked | {"stream": True}
            ) as response:
                lines = response.iter_lines()
                next(lines)
                process.send_signal(signal.SIGTERM)
                rest = list(lines)
        assert rest[-2] == "data: [DONE]"
        assert (
            json.loads(rest[-4].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        )
        assert process.wait(30) == 0


def test_a_second_signal_cuts_what_runs_and_ends_with_one(model_folder):
    with serving(model_folder, "--name", "base") as (process, url):
        with httpx.Client(trust_env=False, timeout=60) as http:
            asked = {"model": "base", "prompt": "one", "max_tokens": 480, "ignore_eos": True}
            more = {"n": 32, "stream": True}
            with http.stream("POST", url + "/v1/completions", json=asked | more) as response:
                lines = response.iter_lines()
                next(lines)
                process.send_signal(signal.SIGTERM)
                process.send_signal(signal.SIGINT)
                rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "draining"
        assert process.wait(30) == 1
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
def test_a_signal_while_starting_ends_without_an_error(model_folder, sent):
    command = [sys.executable, "-m", "ince.cli", "serve", str(model_folder), *REST]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        status = Path(f"/proc/{process.pid}/status")
        until = time.monotonic() + 120
        while True:  # until it catches SIGTERM
            caught = re.search(r"SigCgt:\s*(\w+)", status.read_text())
            if caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1:
                break
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(sent)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0
        assert out == b""
        assert b"stopped before anybody was served" in err
        assert b"Traceback" not in err


def metric(url, name, key=None):
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    text = httpx.get(url + "/metrics", headers=headers, trust_env=False).text
    return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])


def test_what_exceeds_the_cache_is_refused_before_it_starts(model_folder):
    # 2 layers of 2 heads of 8, keys and values, 4 bytes: a block of 16 is 4 KiB.
    with serving(model_folder, "--name", "base", "--kv-memory", "48KiB") as (_, url):
        asked = {"model": "base", "prompt": "one", "ignore_eos": True}
        for most, status in ((300, 400), (100, 200)):
            body = asked | {"max_tokens": most}
            found = httpx.post(url + "/v1/completions", json=body, trust_env=False, timeout=60)
            assert found.status_code == status, found.text
        assert 100 <= metric(url, "ince_engine_tokens_total") < 120


def test_killed_while_it_serves_it_comes_back_with_what_names_meant(
    model_folder, adapters, tmp_path
):
    with Registry(tmp_path / "registry", create=True) as registry:
        registry.put(adapters / "a1", name="legal")
        second = registry.put(adapters / "a2", name="legal")
        registry.tenants.add_tenant("boss", is_admin=True)
        key = registry.tenants.add_key("boss")
    head = {"authorization": f"Bearer {key}"}
    body = {"model": "legal", "prompt": "one", "max_tokens": 400, "ignore_eos": True}
    options = ("--name", "base", "--registry", tmp_path / "registry")
    with (
        serving(model_folder, *options) as (process, url),
        httpx.Client(trust_env=False, timeout=60, headers=head) as http,
        http.stream("POST", url + "/v1/completions", json=body | {"stream": True}) as response,
    ):
        next(response.iter_lines())
        back = http.post(url + "/v1/adapters/rollback", json={"name": "legal"})
        first = back.json()["digest"]
        assert first != second
        process.kill()
        process.wait(20)
    with Registry(tmp_path / "registry") as registry:
        assert registry.verify().problems == ()
        assert registry.resolve("legal") == first
    with (
        serving(model_folder, *options) as (_, url),
        httpx.Client(trust_env=False, timeout=60, headers=head) as http,
    ):
        found = {each["id"]: each["root"] for each in http.get(url + "/v1/models").json()["data"]}
        assert found["legal"] == first
        assert http.post(url + "/v1/completions", json=body).status_code == 200


def test_a_server_without_keys_listens_on_this_machine_alone(model_folder):
    done = subprocess.run(
        [sys.executable, "-m", "ince.cli", "serve", str(model_folder), "--host", "0.0.0.0"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "without keys" in done.stderr
