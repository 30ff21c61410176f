"""What the server says of itself: its OpenAPI document, its metrics, its readiness."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ince.serve.http import Caller


def test_the_document_names_every_route_and_its_failures(serve):
    document = serve().http.get("/openapi.json").json()
    paths = document["paths"]
    assert {
        "/v1/models",
        "/v1/models/{model}",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/v1/adapters/upload",
        "/v1/adapters/alias",
        "/v1/adapters/rollback",
        "/v1/adapters/history",
        "/tokenize",
        "/detokenize",
        "/health",
        "/ready",
        "/metrics",
    } <= set(paths)
    chat = paths["/v1/chat/completions"]["post"]
    assert {"200", "400", "401", "404", "408", "413", "429", "503"} <= set(chat["responses"])
    assert "422" not in chat["responses"]
    assert chat["security"] == [{"key": []}]
    assert paths["/health"]["get"]["security"] == []
    assert "text/event-stream" in chat["responses"]["200"]["content"]


def test_metrics_are_bounded_and_readable(serve, fakes):
    tenants = fakes.Tenants(key=Caller("acme", is_admin=True))
    http = serve(tenants=tenants).http
    key = {"authorization": "Bearer key"}
    asked = {"model": "turkish", "messages": [{"role": "user", "content": "Say it"}]}
    http.post("/v1/chat/completions", json=asked, headers=key)
    for number in range(20):
        http.get(f"/nowhere/{number}", headers=key)
    text = http.get("/metrics", headers=key).text
    found = {family.name: family for family in text_string_to_metric_families(text)}
    routes = {sample.labels["route"] for sample in found["ince_http_requests"].samples}
    assert routes == {"/v1/chat/completions", "none"}
    tokens = found["ince_completion_tokens"].samples[0]
    assert tokens.labels == {"tenant": "acme"}
    assert tokens.value > 4
    lora = found["vllm:lora_requests_info"].samples[0]
    assert lora.labels == {
        "max_lora": "4",
        "running_lora_adapters": "turkish",
        "waiting_lora_adapters": "",
    }
    assert found["ince_adapter_bytes"].samples[0].labels == {"tier": "device"}
    assert found["vllm:kv_cache_usage_perc"].samples[0].value == 0.25


def test_tokens_there_and_back(serve):
    http = serve().http
    there = http.post("/tokenize", json={"prompt": "Ünlü uyumu", "return_token_strs": True}).json()
    assert there["count"] == len(there["tokens"]) == len(there["token_strs"])
    back = http.post("/detokenize", json={"tokens": there["tokens"]}).json()
    assert back == {"prompt": "Ünlü uyumu"}
    chat = http.post("/tokenize", json={"messages": [{"role": "user", "content": "a"}]}).json()
    assert "assistant" in http.post("/detokenize", json={"tokens": chat["tokens"]}).json()["prompt"]
    assert http.post("/detokenize", json={"tokens": [10**6]}).status_code == 400
    assert http.post("/tokenize", json={"prompt": "a", "messages": []}).status_code == 400


def test_a_megabyte_is_tokenized_while_others_are_answered(serve, small_tokenizer):
    begun, answered = threading.Event(), threading.Event()

    def tokenize(text, **options):
        begun.set()
        assert answered.wait(20), "the loop waits for the tokenizer"
        return small_tokenizer(text, **options)

    server = serve()
    server.service.prompts._tokenizer = tokenize
    long = {"model": "tiny", "prompt": "word " * 200_000}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.http.post, "/v1/completions", json=long, timeout=60)
        assert begun.wait(20)
        assert server.http.get("/health").status_code == 200
        answered.set()
        refused = asked.result()
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    counted = server.http.post("/tokenize", json={"prompt": "word " * 200_000}, timeout=60)
    assert counted.json()["count"] > 200_000


def ask_as_allowed(operation, url):
    """Ask what the document allows of one operation; how often it was asked."""
    from hypothesis import HealthCheck, Phase, given, settings

    declared = operation.definition.raw["responses"]
    statuses = []

    @settings(
        max_examples=8,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def ask(case):
        response = case.call(base_url=url, timeout=20)
        statuses.append(response.status_code)
        assert response.status_code < 500, (case.as_curl_command(), response.text)
        assert str(response.status_code) in declared, (response.text, case.as_curl_command())

    ask()
    return statuses


@pytest.mark.filterwarnings("ignore")  # of schemathesis and what it uses
def test_nothing_that_the_document_allows_is_a_server_error(serve, caplog):
    import schemathesis

    caplog.set_level(logging.ERROR)
    url = serve().url
    schema = schemathesis.openapi.from_url(url + "/openapi.json")
    statuses = [
        status
        for result in schema.get_all_operations()
        for status in ask_as_allowed(result.ok(), url)
    ]
    assert len(statuses) > 60
    assert {200, 400} <= set(statuses)
