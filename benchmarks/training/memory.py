"""How much memory a process took: its peak resident set, and the peak of what is its own."""

import threading
from pathlib import Path

_BETWEEN_LOOKS = 0.01  # seconds


def _status(key):
    """Bytes that Linux says of this process; 0 elsewhere."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    text = status.read_text(encoding="utf-8")
    return int(text.split(f"{key}:")[1].split()[0]) * 1024


def own_bytes():
    """The process's own memory: private and shared, but no file's pages."""
    return _status("RssAnon") + _status("RssShmem")


class PeakMemory:
    """Watches the process's own memory by looking often; the kernel keeps the peak of the resident
    set (``VmHWM``) itself."""

    def __init__(self):
        self._own = 0
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self):
        while not self._over.wait(_BETWEEN_LOOKS):
            self._own = max(self._own, own_bytes())

    def figures(self):
        """Bytes: {"peak", "own_peak"}, of the whole process up to now."""
        return {"peak": _status("VmHWM"), "own_peak": max(self._own, own_bytes())}

    def stop(self):
        """Look no more."""
        self._over.set()
        self._watcher.join()
