"""llama.cpp's server with one adapter, in a process of its own.

Base and adapter are converted by its own programs, in float32 as everywhere here.
"""

import http.client
import socket
import subprocess
import sys
import time
from pathlib import Path


def converted(sources, base, adapter, place):
    """(base, adapter) in GGUF; made unless they are there.

    Args:
        sources: llama.cpp's folder, with its converters.
        base: folder of the model. adapter: folder in PEFT's format.
    """
    model, lora = place / "base-f32.gguf", place / f"{Path(adapter).name}-f32.gguf"
    steps = (
        (model, ["convert_hf_to_gguf.py", str(base)]),
        (lora, ["convert_lora_to_gguf.py", "--base", str(base), str(adapter)]),
    )
    for path, (program, *rest) in steps:
        if not path.is_file():
            command = [sys.executable, str(sources / program), "--outtype", "f32"]
            done = subprocess.run(
                [*command, "--outfile", str(path), *rest],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise SystemExit(f"{program} failed: {done.stderr[-2000:]}")
    return model, lora


class LlamaServer:
    """A running llama-server; `port` is where.

    Args:
        program: llama-server, or None for that in the wheel of xllamacpp.
        model, lora: GGUF files.
        num_slots: requests at once. context: tokens of each.
        threads: of the server.
    """

    def __init__(self, program, model, lora, *, num_slots, context, threads, log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        wheel = [sys.executable, str(Path(__file__).with_name("llama_wheel.py"))]
        command = wheel if program is None else [str(program)]
        command += ["-m", str(model), "--lora", str(lora), "--port", str(self.port)]
        command += ["-np", str(num_slots), "-c", str(num_slots * context), "-t", str(threads)]
        command += ["-tb", str(threads), "-ctk", "f32", "-ctv", "f32", "--no-warmup"]
        self._log = log.open("w", encoding="utf-8")
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)
        self._wait(log)

    def _wait(self, log):
        for _ in range(600):
            if self._process.poll() is not None:
                raise SystemExit(f"llama-server ended:\n{log.read_text(encoding='utf-8')[-2000:]}")
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise SystemExit("llama-server did not begin")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait()
        self._log.close()
