"""PEFT and transformers, on the same requests in the same process.

PEFT has no server: `generate(adapter_names=[...])` answers a batch, which begins and ends together.
What its user may choose (which requests share a batch) is tried in several ways, and the best one
counts. transformers' continuous batching (`transformers serve --continuous-batching` runs it) has
no adapter for each request, and answers with the base.
"""

import time

import torch

from serving.timeline import Timeline

ORDERS = ("by length", "by adapter", "an adapter at a time")


def without_end(model):
    """Answers end at their length alone."""
    model.generation_config.eos_token_id = None
    return model


def peft_model(model, folders):
    """`model` with these adapters (number → folder), by PEFT."""
    from peft import PeftModel  # noqa: TID251 - one of the peers

    model = without_end(model)
    (first, folder), *rest = folders.items()
    adapted = PeftModel.from_pretrained(model, folder, adapter_name=str(first))
    for number, folder in rest:
        adapted.load_adapter(folder, adapter_name=str(number))
    return adapted.eval()


def batches(requests, size, order):
    """Numbers of the requests that share a batch, in one of `ORDERS`."""

    def length(number):
        return requests[number].num_new, len(requests[number].prompt)

    numbers = sorted(range(len(requests)), key=length)
    if order == "by length":
        groups = [numbers]
    else:
        numbers.sort(key=lambda number: requests[number].adapter)  # stable: by length within
        groups = [numbers]
        if order == "an adapter at a time":
            groups = []
            for number in numbers:
                if groups and requests[groups[-1][0]].adapter == requests[number].adapter:
                    groups[-1].append(number)
                else:
                    groups.append([number])
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]


@torch.inference_mode()
def run_peft(adapted, requests, *, size, order, pad):
    """Answer all requests in batches of at most `size`; returns their timelines, in order."""
    lines = [Timeline() for _ in requests]
    for batch in batches(requests, size, order):
        mine = [requests[number] for number in batch]
        longest = max(len(each.prompt) for each in mine)
        tokens = torch.full((len(mine), longest), pad)
        mask = torch.zeros_like(tokens)
        for row, each in enumerate(mine):
            tokens[row, longest - len(each.prompt) :] = torch.tensor(each.prompt)
            mask[row, longest - len(each.prompt) :] = 1
        options = {}
        if order == "an adapter at a time":
            adapted.set_adapter(str(mine[0].adapter))
        else:
            options["adapter_names"] = [str(each.adapter) for each in mine]
        out = adapted.generate(
            input_ids=tokens,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=max(each.num_new for each in mine),
            pad_token_id=pad,
            **options,
        )
        now = time.perf_counter()
        for row, number in enumerate(batch):
            line = lines[number]
            line.tokens = out[row, longest : longest + requests[number].num_new].tolist()
            line.times, line.ended = [now], now
    return lines


def run_continuous(model, requests, *, max_batch_tokens, max_running):
    """transformers' continuous batching of the base; returns timelines."""
    from transformers import ContinuousBatchingConfig

    longest = max(len(each.prompt) + each.num_new for each in requests)
    page = 256
    config = ContinuousBatchingConfig(
        page_size=page,
        num_blocks=2 * max_running * -(-longest // page),
        max_batch_tokens=max_batch_tokens,
        max_requests_per_batch=max_running,
    )
    manager = without_end(model).init_continuous_batching(continuous_batching_config=config)
    manager.start()
    try:
        names = {}
        for number, each in enumerate(requests):
            line = Timeline()
            name = manager.add_request(
                list(each.prompt), max_new_tokens=each.num_new, record_timestamps=True
            )
            names[name] = number, line
        lines = [line for _, line in names.values()]
        left = len(lines)
        while left:
            result = manager.get_result(timeout=1)
            if result is None:
                if not manager.is_running():
                    raise RuntimeError("transformers' continuous batching ended early")
                continue
            if not result.is_finished():
                continue
            number, line = names[result.request_id]
            line.tokens, line.times = result.generated_tokens, result.timestamps
            line.ended, line.error = line.times[-1], result.error
            left -= 1
    finally:
        manager.stop(block=True, timeout=10)
    return lines
