"""Sixty-four adapters of every kind on one engine: each answer is that of its adapter alone.

References are transformers' `generate` of a plain model with that one adapter, float32. Where the
two likeliest tokens of a reference are within rounding, either may come, and what follows depends
on it: such requests are counted, compared up to that token, and must be few.
"""

import random
import threading
from collections import Counter

import pytest
import torch

from ince.formats.adapter import adapter_digest
from ince.lora import LoraConfig, PeftModel, get_peft_model
from ince.serve.adapters import AdapterTiers, Folders, serve_layers
from ince.serve.engine import Engine, Finished, GenerationRequest, Token
from ince.serve.sampling import SamplingOptions

MOST_TOKENS = 8
TIE = 1e-5
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS = [
    {"r": 4, "lora_alpha": 8, "target_modules": LINEAR},
    {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    {"r": 6, "lora_alpha": 12, "target_modules": LINEAR, "use_dora": True},
    {"r": 3, "lora_alpha": 6, "target_modules": ["o_proj", "down_proj"], "lora_bias": True},
    {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": LINEAR,
        "rank_pattern": {"q_proj": 5, "layers.1.mlp.up_proj": 1},
        "alpha_pattern": {"k_proj": 7},
    },
    {"r": 16, "lora_alpha": 16, "target_modules": ["gate_proj"], "use_dora": True},
]


def make_base(tiny_llama):
    return tiny_llama(vocab_size=512, tie_word_embeddings=False)


def write_adapters(tiny_llama, folder, count):
    """(digest, folder) of `count` adapters, no two alike."""
    made = []
    for i in range(count):
        kind = KINDS[i % len(KINDS)]
        model = get_peft_model(make_base(tiny_llama), LoraConfig(task_type="CAUSAL_LM", **kind))
        generator = torch.Generator().manual_seed(i)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    drawn = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(0.5 * drawn)
                elif "magnitude" in name:
                    parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))
        path = folder / f"adapter {i}"
        model.save_pretrained(path)
        made.append((adapter_digest(path), path))
    assert len({digest for digest, _ in made}) == count
    return made


@torch.inference_mode()
def answers_of(model, prompts):
    """Tokens, and the place of the first near tie, of each prompt; prompts of equal length."""
    out = model.generate(
        input_ids=torch.tensor(prompts),
        attention_mask=torch.ones(len(prompts), len(prompts[0]), dtype=torch.long),
        max_new_tokens=MOST_TOKENS,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    top_LB2 = torch.stack([logits.topk(2).values for logits in out.logits])
    is_tie_LB = top_LB2[..., 0] - top_LB2[..., 1] < TIE
    found = []
    for row in range(len(prompts)):
        ties = is_tie_LB[:, row].nonzero()[:, 0].tolist()
        tokens = out.sequences[row, len(prompts[0]) :].tolist()
        found.append((tokens, ties[0] if ties else None))
    return found


def draw_prompts(rng):
    """Two lengths, four of each, of which most share beginnings of whole blocks."""
    beginnings = [[rng.randrange(512) for _ in range(32)] for _ in range(2)]
    long = [beginnings[i % 2] + [rng.randrange(512) for _ in range(13)] for i in range(4)]
    short = [beginnings[i % 2][:16] + [rng.randrange(512) for _ in range(12)] for i in range(4)]
    return [long, short]


def references_of(tiny_llama, adapters, groups):
    """By (digest or None, prompt): what that adapter says to it, alone."""
    found = {}
    for digest, path in [*adapters, (None, None)]:
        model = make_base(tiny_llama)
        if path is not None:
            model = PeftModel.from_pretrained(model, path)
        for prompts in groups:
            for prompt, answer in zip(prompts, answers_of(model, prompts), strict=True):
                found[digest, tuple(prompt)] = answer
    return found


def run(engine, references, rng, num_requests, digests):
    """Submit in random order and bursts; some are cancelled. Returns counts of what happened."""
    engine.start()
    slots = threading.Semaphore(40)
    wrong, counts, lock = [], Counter(), threading.Lock()
    keys = list(references)
    weights = [1.0 / (1 + (-1 if d is None else digests.index(d)) % 7) for d, _ in keys]

    def submit(key, max_tokens, cancel_at):
        tokens, handles = [], []
        expected, tie = references[key]

        def hear(event):
            if isinstance(event, Token):
                tokens.append(event.token)
                if len(tokens) == cancel_at and handles:
                    handles[0].cancel()
                return
            if not hasattr(event, "completion_tokens") and not hasattr(event, "error"):
                return
            with lock:
                if not isinstance(event, Finished):
                    wrong.append((key, event))
                else:
                    counts[event.reason] += 1
                    counts["cached"] += event.cached_tokens > 0
                    sure = max_tokens if tie is None or tie >= max_tokens else tie
                    counts["ties"] += sure < max_tokens
                    length = max_tokens if event.reason == "length" else len(tokens)
                    if tokens[:sure] != expected[: min(length, sure)] or len(tokens) != length:
                        wrong.append((key, tokens, expected))
            slots.release()

        options = SamplingOptions(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        tenant = rng.choice(["", "a", "b"])
        request = GenerationRequest("r", key[1], options, adapter=key[0], tenant=tenant)
        handles.append(engine.submit(request, hear))

    for _ in range(num_requests):
        assert slots.acquire(timeout=100), "requests do not end"
        key = rng.choices(keys, weights)[0]
        submit(key, rng.randint(1, MOST_TOKENS), rng.choice([0, 0, 0, 0, 0, 3]))
    assert engine.drain(100)
    assert wrong == []
    return counts


def check(tiny_llama, small_tokenizer, folder, *, num_adapters, num_slots, num_requests, seed):
    rng = random.Random(seed)
    adapters = write_adapters(tiny_llama, folder, num_adapters)
    references = references_of(tiny_llama, adapters, draw_prompts(rng))
    # Adapters say something of their own, or a mix-up would not show.
    said = {tuple(tokens) for tokens, _ in references.values()}
    assert len(said) > 0.7 * len(references)
    served = serve_layers(make_base(tiny_llama))
    tiers = AdapterTiers(
        served,
        Folders(dict(adapters)),
        num_slots=num_slots,
        memory_bytes=num_slots * 60_000,
    )
    bytes_of_block = 2 * 2 * 2 * 16 * 16 * 4
    engine = Engine(
        served.model,
        small_tokenizer,
        adapters=tiers,
        kv_bytes=13 * bytes_of_block,
        max_batch_tokens=48,
        max_running=8,
    )
    try:
        digests = [digest for digest, _ in adapters]
        counts = run(engine, references, rng, num_requests, digests)
        stats = engine.stats()
    finally:
        engine.close()
        tiers.close()
    assert stats.kv_blocks_used == 0
    assert stats.preemptions > 0
    assert counts["cached"] > 0
    assert counts["cancelled"] > 0
    assert counts["ties"] <= 0.02 * num_requests
    assert stats.adapters.slot_evictions > 0
    assert counts["length"] + counts["cancelled"] == num_requests
    return counts, stats


def test_answers_of_mixed_adapters_are_those_of_each_alone(tiny_llama, small_tokenizer, tmp_path):
    check(
        tiny_llama,
        small_tokenizer,
        tmp_path,
        num_adapters=6,
        num_slots=2,
        num_requests=60,
        seed=5,
    )


@pytest.mark.long
@pytest.mark.timeout(900)
def test_thousands_of_requests_for_sixty_four_adapters_meet_no_other_adapter(
    tiny_llama, small_tokenizer, tmp_path
):
    _, stats = check(
        tiny_llama,
        small_tokenizer,
        tmp_path,
        num_adapters=64,
        num_slots=8,
        num_requests=2000,
        seed=6,
    )
    assert stats.adapters.memory_evictions > 0
