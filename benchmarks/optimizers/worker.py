"""One optimizer in a process of its own: steps of full fine-tuning, when it is asked.

The model is SmolLM2-135M in float32 (1.08 GB of AdamW's state), or a tiny one; tokens are random,
as what they say has no part in what a step costs. A step is forward, backward and update.
"""

import time
from pathlib import Path

from training.memory import PeakMemory


def load(base):
    """The model, every weight of which learns."""
    import torch

    import ince

    if base == "tiny":
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "intermediate_size": 160, "vocab_size": 4096}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
        model = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
    else:
        model, _ = ince.load_model(base, dtype=torch.float32, device="cpu")
    return model.requires_grad_(True).train()


def make_optimizer(who, model, spec):
    """`who` is a kind, or a share of the state that may be in memory."""
    import torch

    parameters = list(model.parameters())
    if who == "torch AdamW":
        return torch.optim.AdamW(parameters, lr=1e-5)
    if who == "bitsandbytes 8-bit":
        import bitsandbytes as bnb  # noqa: TID251

        return bnb.optim.AdamW8bit(parameters, lr=1e-5)
    if who == "ince 8-bit":
        from ince.optim import AdamW8bit

        return AdamW8bit(parameters, lr=1e-5)
    from ince.optim import PagedAdamW, PagesConfig

    state_bytes = 8 * sum(p.numel() for p in parameters)
    budget = int(state_bytes * spec["share"])
    pages = PagesConfig(
        device=0,
        memory=budget if budget >= spec["page_bytes"] else 0,
        page_bytes=spec["page_bytes"],
        directory=Path(spec["directory"]),
    )
    return PagedAdamW(parameters, lr=1e-5, pages=pages)


class Steps:
    """Answers ``step`` with the seconds of one, ``update`` with those of an update by itself."""

    def __init__(self, who, spec):
        import torch

        self._memory = PeakMemory()
        self._model = load(spec["base"])
        self._optimizer = make_optimizer(who, self._model, spec)
        torch.manual_seed(1)
        vocabulary = self._model.config.vocab_size
        self._ids = torch.randint(vocabulary, (spec["rows"], spec["length"]))

    def backward(self):
        self._model(input_ids=self._ids, labels=self._ids, use_cache=False).loss.backward()

    def __call__(self, *, go):
        began = time.perf_counter()
        if go == "step":
            self.backward()
        elif next(self._model.parameters()).grad is None:
            self.backward()
            began = time.perf_counter()
        before = time.perf_counter()
        self._optimizer.step()
        ended = time.perf_counter()
        if go == "step":
            self._optimizer.zero_grad(set_to_none=True)
        return {
            "seconds": ended - began,
            "update_seconds": ended - before,
            "memory": self._memory.figures(),
            "tiers": self.tiers(),
        }

    def tiers(self):
        """Bytes of state where it lies, and seconds waited for; of what does not page, none."""
        usage = getattr(self._optimizer, "usage", None)
        return None if usage is None else vars(usage())

    def stop(self):
        self._memory.stop()
