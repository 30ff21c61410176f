"""The bound of a training step: the matrix products that it cannot avoid, timed alone.

They are, for the tokens of a micro-batch, the product of each frozen linear layer and that of its
input's gradient; and for the positions that carry loss the same two of the output head. What is
left out is what a step also does: attention, norms, element-wise work, the adapter, the optimizer,
and the expansion of packed weights. Rows are those of the run, padding left out; weights are
separate tensors, as in the model, so that each is read from memory as in a step.
"""

import time
from collections import Counter

import torch


def linear_shapes(config):
    """(out, in) of every linear layer of a Llama-like model, with how often it occurs."""
    hidden, inner = config.hidden_size, config.intermediate_size
    width = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    queries, keys = config.num_attention_heads * width, config.num_key_value_heads * width
    one_layer = [(queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)]
    one_layer += [(inner, hidden), (inner, hidden), (hidden, inner)]
    return Counter(one_layer * config.num_hidden_layers)


def num_operations(config, num_tokens, num_targets):
    """Multiplications and additions of a step's products."""
    layers = sum(count * out * width for (out, width), count in linear_shapes(config).items())
    return 4 * (num_tokens * layers + num_targets * config.hidden_size * config.vocab_size)


class StepBound:
    """Times the products of a step over micro-batches of some rows."""

    def __init__(self, config, dtype, device="cpu"):
        self._dtype, self._device = dtype, device
        self._head = self._weight(config.vocab_size, config.hidden_size)
        self._weights = [
            self._weight(*shape)
            for shape, count in linear_shapes(config).items()
            for _ in range(count)
        ]

    def _weight(self, *shape):
        return torch.randn(shape, device=self._device).mul_(0.02).to(self._dtype)

    def _rows(self, num_rows, widths):
        """For each width, rows that are read and rows that are written."""
        size = {width: (num_rows, width) for width in widths}
        read = {w: torch.randn(s, device=self._device).to(self._dtype) for w, s in size.items()}
        return read, {width: torch.empty_like(rows) for width, rows in read.items()}

    @staticmethod
    def _both(weight, rows):
        """The product and the gradient of its input."""
        (out, width), (read, written) = weight.shape, rows
        torch.mm(read[width], weight.t(), out=written[out])
        torch.mm(read[out], weight, out=written[width])

    @torch.no_grad()
    def seconds(self, micro_batches):
        """Of one step.

        Args:
            micro_batches: (tokens, targets) of each.
        """
        widths = {side for weight in self._weights for side in weight.shape}
        total = 0.0
        for num_tokens, num_targets in micro_batches:
            rows = self._rows(num_tokens, widths)
            targets = self._rows(num_targets, self._head.shape)
            start = time.perf_counter()
            for weight in self._weights:
                self._both(weight, rows)
            if num_targets:
                self._both(self._head, targets)
            total += time.perf_counter() - start
        return total


def run_bound(spec, gate):
    """Serve ``{"micro_batches": [[tokens, targets], …]}`` with the seconds of such a step."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(spec["model"])
    bound = StepBound(config, getattr(torch, spec["dtype"]))

    def answer(micro_batches):
        tokens, targets = (sum(column) for column in zip(*micro_batches, strict=True))
        operations = num_operations(config, tokens, targets)
        return {"seconds": bound.seconds(micro_batches), "operations": operations}

    gate.serve(answer)
