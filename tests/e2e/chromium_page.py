"""Drive a headless Chromium over two pipes: by its own protocol, without a package for it."""

import base64
import json
import os
import select
import subprocess
import time

CODES = {"Enter": 13, "Escape": 27, "Tab": 9}


class Page:
    """One tab: runs scripts, types, takes pictures, and keeps what went wrong in it."""

    def __init__(self, browser, profile):
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        # It reads descriptor 3 and writes 4, which may be others' here.
        command = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        flags = ["--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", command, *browser, *flags],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._number, self._rest, self._session = 0, b"", None
        self.wrong = []
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self._ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def _ask(self, method, **params):
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            told = self._told(method)
            if told.get("id") == self._number:
                assert "error" not in told, told
                return told["result"]
            if told.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.wrong.append(told["params"])

    def _told(self, method):
        while b"\0" not in self._rest:
            assert select.select([self._from], [], [], 60)[0], f"no answer to {method}"
            got = os.read(self._from, 1 << 20)
            assert got, "the browser has gone"
            self._rest += got
        one, _, self._rest = self._rest.partition(b"\0")
        return json.loads(one)

    def open(self, url):
        self._ask("Page.navigate", url=url)
        self.until(f"location.href === {url!r} && document.readyState === 'complete'")

    def run(self, script):
        """What an expression is; promises are waited for."""
        found = self._ask(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script, seconds=60):
        """Wait for an expression to be true."""
        end = time.monotonic() + seconds
        while not (found := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.02)
        return found

    def choose(self, element, *paths):
        """Give files to an input, as its dialog would, which no script may do."""
        found = self._ask("Runtime.evaluate", expression=f"document.getElementById({element!r})")
        files = [str(path) for path in paths]
        handle = found["result"]["objectId"]
        self._ask("DOM.setFileInputFiles", files=files, objectId=handle)

    def type(self, text):
        self._ask("Input.insertText", text=text)

    def key(self, key):
        event = {"key": key, "code": key, "windowsVirtualKeyCode": CODES[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self._ask("Input.dispatchKeyEvent", type="keyDown", **event, **text)
        self._ask("Input.dispatchKeyEvent", type="keyUp", **event)

    def look(self, *, width=1280, height=800, dark=False):
        """Take a size and a color scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self):
        """A PNG of what is seen."""
        return base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"])

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
