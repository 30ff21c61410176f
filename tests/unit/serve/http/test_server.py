"""How the server stops: it finishes, may be told to hurry, and says what became of whose."""

import json
import signal
import time

import pytest

CHAT = "/v1/chat/completions"
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "Say it"}], "stream": True}


def wait_until(holds):
    until = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def gone(server):
    """Whether nobody listens any more."""
    try:
        server.http.get("/health")
    except Exception as error:
        return "onnect" in type(error).__name__ or "Protocol" in type(error).__name__
    return False


def test_a_second_signal_cuts_what_runs_and_says_so(serve, engine):
    engine.go.clear()
    server = serve()
    with server.http.stream("POST", CHAT, json=ASKED) as response:
        lines = response.iter_lines()
        next(lines)
        server.server.handle_exit(signal.SIGTERM, None)
        wait_until(lambda: engine.draining)
        assert not engine.closed.is_set()
        server.server.handle_exit(signal.SIGINT, None)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "draining"
    wait_until(lambda: gone(server))
    assert server.server.has_cut


def test_a_second_signal_when_nothing_runs_cuts_nothing(serve, engine):
    server = serve()
    assert server.http.post(CHAT, json=ASKED).status_code == 200
    server.server.handle_exit(signal.SIGTERM, None)
    server.server.handle_exit(signal.SIGTERM, None)
    wait_until(lambda: gone(server))
    assert engine.closed.is_set()
    assert not server.server.has_cut


def test_what_is_not_finished_in_time_is_cut_as_well(serve, engine):
    engine.go.clear()
    server = serve()
    server.server._seconds = 0.2
    with server.http.stream("POST", CHAT, json=ASKED) as response:
        lines = response.iter_lines()
        next(lines)
        server.server.handle_exit(signal.SIGTERM, None)
        assert "draining" in [line for line in lines if line][-2]
    wait_until(lambda: gone(server))
    assert server.server.has_cut


def test_a_third_signal_waits_for_nothing(serve, engine, monkeypatch):
    ends = []
    monkeypatch.setattr("os._exit", ends.append)
    engine.close = lambda: time.sleep(1)
    server = serve().server
    server.handle_exit(signal.SIGTERM, None)
    server.handle_exit(signal.SIGTERM, None)
    assert ends == []
    server.handle_exit(signal.SIGTERM, None)
    assert ends == [1]


@pytest.mark.parametrize("path", ["/ready", "/v1/models"])
def test_a_server_that_hurries_still_answers_who_is_there(serve, engine, path):
    engine.go.clear()
    server = serve()
    with server.http.stream("POST", CHAT, json=ASKED) as response:
        next(response.iter_lines())
        server.server.handle_exit(signal.SIGTERM, None)
        assert server.http.get(path).status_code == (503 if path == "/ready" else 200)
