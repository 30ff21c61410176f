"""Every refusal has OpenAI's form and the right status, and nothing gets past the door."""

import json
import logging
import socket
import time
from contextlib import contextmanager

import pytest

from ince.errors import CorruptFileError, QueueFullError
from ince.serve.http import Caller

CHAT = "/v1/chat/completions"
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "Say it"}]}


def refused(response, status, code):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    return error


def wait_until(holds):
    until = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


@contextmanager
def connected(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        yield connection


@contextmanager
def ask_by_hand(server, asked):
    body = json.dumps(asked).encode()
    with connected(server) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        yield connection


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not valid JSON"),
        (b'{"model": "\xff"}', "body"),
        (b"[" * 100_000, ""),
        (b'{"model": 1e999999}', "model"),
        (b'{"seed": ' + b"9" * 5_000 + b"}", ""),
        (b"", "required"),
        (b"null", ""),
        (b"[]", ""),
        (json.dumps(ASKED | {"temperature": float("nan")}).encode(), "finite"),
        (json.dumps(ASKED | {"temperature": 10**400}).encode(), "temperature"),
        (json.dumps(ASKED | {"max_tokens": True}).encode(), "max_tokens"),
    ],
    ids=[
        "cut",
        "utf-8",
        "deep",
        "infinite",
        "digits",
        "empty",
        "null",
        "list",
        "nan",
        "big",
        "bool",
    ],
)
def test_a_body_that_is_none(serve, engine, body, says):
    response = serve().http.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]
    assert engine.requests == []


def test_unknown_routes_methods_and_models(serve):
    http = serve().http
    refused(http.get("/v1/nothing"), 404, "unknown_route")
    assert refused(http.get(CHAT), 405, "method_not_allowed")["type"] == "invalid_request_error"
    error = refused(http.post(CHAT, json=ASKED | {"model": "none"}), 404, "model_not_found")
    assert error["param"] == "model"
    # What another page could send without asking first is no request.
    simple = http.post(CHAT, content=json.dumps(ASKED), headers={"content-type": "text/plain"})
    assert simple.status_code == 400


def test_a_key_is_wanted_and_only_a_right_one_will_do(serve, engine, fakes):
    http = serve(tenants=fakes.Tenants(right=Caller("acme"))).http
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "right"},
        {"authorization": "Basic right"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer " + "x" * 10_000},
        [("authorization", "Bearer right"), ("authorization", "Bearer right")],
    ):
        response = http.post(CHAT, json=ASKED, headers=headers)
        refused(response, 401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
    # A body is not read for who may not send one.
    assert http.post(CHAT, content=b"{", headers={}).status_code == 401
    assert engine.requests == []
    right = http.post(CHAT, json=ASKED, headers={"authorization": "bearer right"})
    assert right.status_code == 200
    assert http.get("/health").status_code == 200
    assert http.get("/metrics").status_code == 401


def test_another_tenants_adapter_answers_as_one_that_is_not_there(serve, fakes):
    directory = fakes.Directory({}, acme={"legal": "a" * 64}, other={"secret": "b" * 64})
    http = serve(directory=directory, tenants=fakes.Tenants(key=Caller("acme"))).http
    key = {"authorization": "Bearer key"}

    def ask(name, path=CHAT):
        if path == CHAT:
            return http.post(path, json=ASKED | {"model": name}, headers=key)
        return http.get(f"{path}/{name}", headers=key)

    for path in (CHAT, "/v1/models"):
        theirs, nobodys = ask("secret", path), ask("absent", path)
        refused(theirs, 404, "model_not_found")
        assert theirs.text.replace("secret", "absent") == nobodys.text
        kept = [{k: v for k, v in r.headers.items() if k not in ("date", "x-request-id")}
                for r in (theirs, nobodys)]  # fmt: skip
        assert kept[0] == kept[1]
    assert ask("legal").status_code == 200
    listed = [model["id"] for model in http.get("/v1/models", headers=key).json()["data"]]
    assert listed == ["tiny", "legal"]


def test_the_base_can_be_kept_from_a_tenant(serve, fakes):
    directory = fakes.Directory({}, without_base=("acme",))
    http = serve(directory=directory, tenants=fakes.Tenants(key=Caller("acme"))).http
    key = {"authorization": "Bearer key"}
    refused(http.post(CHAT, json=ASKED, headers=key), 404, "model_not_found")
    assert http.get("/v1/models", headers=key).json()["data"] == []
    refused(http.get("/v1/models/tiny", headers=key), 404, "model_not_found")


def test_administration_is_for_administrators(serve, fakes):
    http = serve(tenants=fakes.Tenants(key=Caller("acme"))).http
    key = {"authorization": "Bearer key"}
    named = {"lora_name": "a", "lora_path": "a"}
    for path, body in (
        ("/v1/load_lora_adapter", named),
        ("/v1/adapters/rollback", {"name": "a"}),
        ("/v1/adapters/alias", {"name": "a", "digest": "0" * 64}),
    ):
        response = http.post(path, json=body, headers=key)
        assert response.status_code in (400, 403)
    refused(http.get("/metrics", headers=key), 403, "not_admin")


def test_bodies_are_bounded_whatever_they_say_of_themselves(serve, engine):
    http = serve(max_body_bytes=10_000).http
    big = json.dumps(ASKED | {"user": "x" * 20_000}).encode()
    json_type = {"content-type": "application/json"}
    refused(http.post(CHAT, content=big, headers=json_type), 413, "body_too_large")

    def pieces():
        for at in range(0, len(big), 1_000):
            yield big[at : at + 1_000]

    assert http.post(CHAT, content=pieces(), headers=json_type).status_code == 413
    assert engine.requests == []


def test_a_body_that_does_not_come_is_given_up(serve):
    server = serve(stall_seconds=0.3)
    with connected(server) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nX\x00Y: 1\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
    ],
    ids=["two hosts", "no host", "long", "two lengths", "name", "tls"],
)
def test_headers_that_are_abuse_are_refused_and_the_server_goes_on(serve, head):
    server = serve()
    with connected(server) as connection:
        try:
            connection.sendall(head)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(4096)
        except OSError:  # closed on us
            answer = b""
    assert not answer or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 5", b"HTTP/1.1 4"))
    assert server.http.get("/health").status_code == 200


def test_pages_of_other_origins_and_other_host_names_are_refused(serve):
    server = serve(hosts=frozenset({"127.0.0.1", "localhost"}))
    http, own = server.http, server.url
    refused(http.get("/v1/models", headers={"origin": "https://evil.example"}), 403, "wrong_origin")
    refused(http.get("/v1/models", headers={"origin": "null"}), 403, "wrong_origin")
    refused(http.get("/v1/models", headers={"host": "evil.example"}), 421, "wrong_host")
    same = http.get("/v1/models", headers={"origin": own})
    assert same.status_code == 200
    assert "access-control-allow-origin" not in same.headers
    assert same.headers["x-content-type-options"] == "nosniff"


def test_a_full_queue_says_when_to_come_back(serve, engine):
    engine.max_waiting = 0
    response = serve().http.post(CHAT, json=ASKED)
    refused(response, 429, "queue_full")
    assert response.headers["retry-after"] == "7"


def test_a_request_of_which_one_answer_finds_no_place_has_none(serve, engine):
    engine.go.clear()
    engine.max_waiting = 2
    response = serve().http.post(CHAT, json=ASKED | {"n": 3})
    refused(response, 429, "queue_full")
    assert len(engine.cancelled) == 2


def test_requests_and_tokens_a_minute(serve, fakes):
    tenants = fakes.Tenants(
        few=Caller("few", requests_per_minute=2),
        short=Caller("short", tokens_per_minute=40),
    )
    http = serve(tenants=tenants).http

    def ask(key, text="Say it"):
        body = ASKED | {"messages": [{"role": "user", "content": text}]}
        return http.post(CHAT, json=body, headers={"authorization": f"Bearer {key}"})

    assert [ask("few").status_code for _ in range(3)] == [200, 200, 429]
    refused(over := ask("few"), 429, "requests_per_minute")
    assert 1 <= int(over.headers["retry-after"]) <= 60
    assert ask("short").status_code == 200
    assert refused(ask("short"), 429, "tokens_per_minute")["type"] == "rate_limit_error"
    assert "40 a minute" in ask("short", "long " * 60).json()["error"]["message"]


def test_requests_at_once(serve, engine, fakes):
    engine.go.clear()
    http = serve(tenants=fakes.Tenants(one=Caller("one", max_concurrent=1))).http
    key = {"authorization": "Bearer one"}
    with http.stream("POST", CHAT, json=ASKED | {"stream": True}, headers=key) as first:
        lines = first.iter_lines()
        next(lines)
        refused(http.post(CHAT, json=ASKED, headers=key), 429, "too_many_concurrent")
        engine.go.set()
        assert list(lines)[-2] == "data: [DONE]"
    assert http.post(CHAT, json=ASKED, headers=key).status_code == 200


def test_what_was_used_is_written_down(serve, engine, monkeypatch, fakes):
    monkeypatch.setattr("ince.serve.http.app._TENANT_SECONDS", 0.05)
    tenants = fakes.Tenants(key=Caller("acme"))
    http = serve(tenants=tenants).http
    key = {"authorization": "Bearer key"}
    assert http.post(CHAT, json=ASKED | {"n": 2}, headers=key).status_code == 200
    assert http.post(CHAT, json=ASKED | {"model": "turkish"}, headers=key).status_code == 200
    assert http.post(CHAT, json=ASKED | {"model": "none"}, headers=key).status_code == 404
    wait_until(lambda: len(tenants.usage) == 2)
    num_prompt = len(engine.requests[0].prompt)
    assert tenants.usage[("acme", "")] == [1, 2 * num_prompt, 8]
    assert tenants.usage[("acme", "a" * 64)][0] == 1


def test_a_fault_inside_tells_nothing(serve, engine, caplog):
    engine.failure = CorruptFileError("an adapter's file was altered", where="secret/place")
    response = serve().http.post(CHAT, json=ASKED)
    refused(response, 500, "failed")
    assert "secret" not in response.text

    def broken(request, listener):
        raise RuntimeError("the hidden reason")

    engine.failure = None
    engine.submit = broken
    with caplog.at_level(logging.CRITICAL):
        response = serve().http.post(CHAT, json=ASKED)
    refused(response, 500, "internal_error")
    assert "hidden" not in response.text


def lines_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("ince")]


def test_logs_hold_neither_prompts_nor_keys_and_no_line_is_forged(serve, caplog, fakes):
    http = serve(tenants=fakes.Tenants(topsecret=Caller("acme"))).http
    with caplog.at_level(logging.DEBUG, logger="ince"):
        body = ASKED | {"messages": [{"role": "user", "content": "a private question"}]}
        http.post(CHAT, json=body, headers={"authorization": "Bearer topsecret"})
        http.get("/a%0Aforged%20line?key=topsecret")
        # A line is written when its answer is out, which the client may have before.
        wait_until(lambda: len(lines_of(caplog)) == 2)
    lines = lines_of(caplog)
    assert sum("tenant=acme" in line for line in lines) == 1
    assert len(lines) == 2
    for line in lines:
        assert "topsecret" not in line
        assert "private" not in line
        assert "\n" not in line


def test_a_deadline_ends_a_request(serve, engine):
    engine.token_seconds = 0.1
    http = serve().http
    response = http.post(CHAT, json=ASKED, headers={"x-request-timeout": "0.15"})
    refused(response, 408, "deadline_exceeded")
    assert response.headers["x-should-retry"] == "false"
    streamed = http.post(CHAT, json=ASKED | {"stream": True}, headers={"x-request-timeout": "0.15"})
    events = [line for line in streamed.text.split("\n\n") if line]
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    assert events[-1] == "data: [DONE]"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_frees_what_it_asked_for(serve, engine, stream):
    engine.token_seconds = 0.05
    engine.words[None] = "word " * 200
    with ask_by_hand(serve(), ASKED | {"stream": stream}) as connection:
        if stream:
            connection.recv(100)
        wait_until(lambda: engine.requests)
    wait_until(lambda: not engine.num_running)
    assert engine.cancelled == [engine.requests[0].request_id]
    assert engine.num_running == 0


@pytest.mark.parametrize(
    "settings", [{"stream_events": 8}, {"stall_seconds": 0.3}], ids=["events", "seconds"]
)
def test_a_reader_too_slow_for_its_stream_is_cancelled(serve, engine, settings):
    engine.words[None] = "word " * 120
    engine.text_factor = 20_000  # fills the buffers of a socket that nobody reads
    server = serve(**settings)
    with ask_by_hand(server, ASKED | {"stream": True}):
        wait_until(lambda: engine.cancelled)
        wait_until(lambda: not engine.num_running)
    assert server.http.get("/health").status_code == 200


def test_a_draining_server_finishes_what_it_has(serve, engine):
    engine.go.clear()
    server = serve()
    with server.http.stream("POST", CHAT, json=ASKED | {"stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        server.server.begin_to_drain()
        refused(answer := server.http.post(CHAT, json=ASKED), 503, "draining")
        assert "retry-after" in answer.headers
        refused(server.http.get("/ready"), 503, "draining")
        assert server.http.get("/health").status_code == 200
        engine.go.set()
        assert list(lines)[-2] == "data: [DONE]"


def test_the_queue_full_error_has_the_engines_seconds():
    assert QueueFullError("full", retry_after=2.5).retry_after == 2.5
