"""What the sections share: the model, its adapters on disk, the workload's size, the settings."""

from functools import cached_property
from pathlib import Path

import torch
from training.tiny import tiny_model

from ince.formats.adapter import adapter_digest
from ince.serve.adapters import Folders
from serving.drawn_adapters import is_dora, write_adapters
from serving.ours import Ours
from serving.workload import make_requests, over

MODEL = "smollm2-135m-instruct"


class Bench:
    """Everything that a section needs.

    Args:
        arguments: of the command.
        place: a folder for adapters and converted files, kept between runs where the user says so.
    """

    def __init__(self, arguments, place):
        self.arguments, self.place = arguments, place
        self.quick = arguments.quick
        self.max_running = 8 if self.quick else arguments.running
        self.max_batch_tokens = 64 if self.quick else arguments.batch_tokens
        self.counts = (0, 1, 4) if self.quick else tuple(arguments.counts)

    @cached_property
    def base(self):
        """The folder of the model."""
        if self.quick:
            return tiny_model(self.place / "tiny")
        from ince.models import resolve

        return Path(resolve(MODEL).folder)

    def load(self):
        """A model of one's own in float32, and its tokenizer."""
        import ince

        return ince.load_model(str(self.base), dtype=torch.float32, device="cpu")

    @cached_property
    def loaded(self):
        """The model that ince serves with, one engine after the other."""
        return self.load()

    def requests(self, seed=0, count=None, *, shares=True):
        """The workload, to the base; `shares`: every second prompt has a common beginning."""
        model, _ = self.loaded
        news = self.arguments.answers
        lengths = {"shortest": 64, "longest": 256, "system": 64, "news": news}
        if self.quick:
            lengths = {"shortest": 8, "longest": 40, "system": 16, "news": (4, 8)}
        lengths["system"] *= shares
        count = count or (10 if self.quick else self.arguments.requests)
        return make_requests(count, model.config.vocab_size, seed, **lengths)

    def numbers(self, count, *, dora=True):
        """Numbers of `count` adapters; without DoRA where a peer has none."""
        found = (number for number in range(2 * count + 2) if dora or not is_dora(number))
        return [next(found) for _ in range(count)]

    def adapters(self, numbers):
        """Write these adapters; number → folder, and number → digest."""
        folders = write_adapters(self.place / "adapters", self.loaded[0], numbers)
        return folders, {number: adapter_digest(path) for number, path in folders.items()}

    def ours(self, folders=None, digests=None, **options):
        """An engine over these adapters, or over the base alone."""
        source = None
        if folders:
            source = Folders({digests[number]: path for number, path in folders.items()})
        return self.ours_of(source, **options)

    def ours_of(self, source, **options):
        """An engine over the adapters of a source."""
        settings = {
            "max_running": self.max_running,
            "max_batch_tokens": self.max_batch_tokens,
            "kv_bytes": (8 << 20) if self.quick else (1 << 30),
        }
        return Ours(*self.loaded, source, **(settings | options))


def spread(requests, numbers):
    """The requests over these adapters; the same draw for the same number of them."""
    return over(requests, numbers, seed=len(numbers))
