"""Clients of servers that speak HTTP, in a process of their own: `python clients.py < spec`.

A thread for each request, with the standard library alone, so that what is measured is the server.
The spec is one JSON object: `host`, `port`, `kind` (ince or llama.cpp), and `requests`, each with
prompt, num_new and model. Answers with a JSON line of times since the beginning for each request.
"""

import http.client
import json
import subprocess
import sys
import threading
import time


def body_of(kind, asked):
    """What the request says to a server of this kind: its path and JSON."""
    if kind == "ince":
        return "/v1/completions", {
            "model": asked["model"],
            "prompt": asked["prompt"],
            "max_tokens": asked["num_new"],
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
    return "/completion", {
        "prompt": asked["prompt"],
        "n_predict": asked["num_new"],
        "temperature": 0,
        "top_k": 1,
        "ignore_eos": True,
        "cache_prompt": True,
        "stream": True,
    }


def ask(spec, asked, begun, told):
    """One request; what it leaves in `told`."""
    path, body = body_of(spec["kind"], asked)
    told["asked"] = time.perf_counter() - begun
    try:
        connection = http.client.HTTPConnection(spec["host"], spec["port"], timeout=600)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            told["error"] = f"{response.status}: {response.read(500).decode()}"
            return
        for line in response:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            event = json.loads(line[6:])
            is_token = ("choices" in event and event["choices"]) or "content" in event
            if is_token and not event.get("stop") and len(told["times"]) < asked["num_new"]:
                told["times"].append(time.perf_counter() - begun)
        told["ended"] = time.perf_counter() - begun
    except (OSError, ValueError, http.client.HTTPException) as error:
        told["error"] = f"{type(error).__name__}: {error}"


def main():
    spec = json.loads(sys.stdin.read())
    begun = time.perf_counter()
    told = [{"times": [], "error": None} for _ in spec["requests"]]
    threads = [
        threading.Thread(target=ask, args=(spec, asked, begun, mine))
        for asked, mine in zip(spec["requests"], told, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(told))


def run_clients(kind, port, requests, models):
    """Send the requests from another process; returns their timelines."""
    from serving.timeline import Timeline

    spec = {
        "kind": kind,
        "host": "127.0.0.1",
        "port": port,
        "requests": [
            {"prompt": each.prompt, "num_new": each.num_new, "model": models(each)}
            for each in requests
        ],
    }
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(spec),
        capture_output=True,
        text=True,
        check=True,
    )
    lines = []
    for told, asked in zip(json.loads(done.stdout), requests, strict=True):
        line = Timeline(told["asked"])
        line.times, line.error, line.ended = told["times"], told["error"], told.get("ended")
        # Pieces of text, of which a token may have none: the number of tokens was asked for.
        line.tokens = [None] * asked.num_new
        lines.append(line)
    return lines


if __name__ == "__main__":
    main()
