"""ince's HTTP server in this process, with clients in another one."""

import socket
import threading
import time

from serving.against import ratio
from serving.bench import spread
from serving.clients import run_clients
from serving.timeline import say, summary


class Server:
    """The routes over an engine, served by a thread."""

    def __init__(self, engine, tokenizer, folders):
        from ince.serve.http.app import create_app
        from ince.serve.http.directory import FolderDirectory
        from ince.serve.http.server import make_server
        from ince.serve.http.settings import HttpSettings

        directory = FolderDirectory(None)
        for number, folder in folders.items():
            directory.alias(f"a{number}", directory.put(folder))
        settings = HttpSettings(base_name="base", context_length=engine.context_length)
        app = create_app(engine, tokenizer, directory, None, settings)
        self._server = make_server(app, engine)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    def __enter__(self):
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


def through_http(bench):
    """The same requests to the engine in process, and through the server."""
    numbers = bench.numbers(4 if bench.quick else 16)
    folders, digests = bench.adapters(numbers)
    requests = spread(bench.requests(), numbers)
    found = {"in process": [], "http": []}
    _, tokenizer = bench.loaded
    with bench.ours(folders, digests) as ours, Server(ours.engine, tokenizer, folders) as server:
        ours.warm(digests.values())
        ours.run(requests[:4], digests, salt="warm")
        for number in range(bench.arguments.rounds):
            # Of the clients' requests none meets what an earlier round computed either.
            mine = [*requests] if not number else rotated(requests, number)
            found["in process"].append(summary(ours.run(mine, digests, salt=f"http {number}")))
            say("in process", found["in process"][-1])
            lines = run_clients("ince", server.port, mine, lambda each: f"a{each.adapter}")
            found["http"].append(summary(lines))
            say("http", found["http"][-1])
    over = ratio(found["http"], found["in process"])
    print(f"  tokens/s through HTTP, of those in process: {over}")
    return {"rounds": found, "over": over}


def rotated(requests, number):
    """The same requests with other tokens: each prompt moved along the vocabulary."""
    from dataclasses import replace

    return [
        replace(each, prompt=tuple(max(3, token - number) for token in each.prompt))
        for each in requests
    ]
