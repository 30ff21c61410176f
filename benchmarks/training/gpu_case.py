"""One case of `train_gpu.py`, in a process of its own: train a drawn model a few steps.

Every token but the first of a row is learnt, one row in a step. A step lasts from the end of an
optimizer step to the end of the next, the device waited for. The peak is the allocator's, model
included.
"""

import tempfile
import time
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from training.bound import num_operations
from training.drawn import bitsandbytes_pack, config_of, drawn_model, ince_pack
from training.memory import PeakMemory

WARM_UP = 2


class Clock:
    """Ends of optimizer steps, the device's work included."""

    def __init__(self, device):
        self._wait = torch.cuda.synchronize if device != "cpu" else lambda: None
        self.ends = []
        register_optimizer_step_post_hook(self._stepped)

    def _stepped(self, *_):
        self._wait()
        self.ends.append(time.perf_counter())

    def seconds(self):
        steps = [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)]
        return steps[WARM_UP - 1 :]


def rows_of(case, vocab):
    generator = torch.Generator().manual_seed(0)
    size = (WARM_UP + case["steps"], case["tokens"])
    return torch.randint(vocab, size, generator=generator).tolist()


def train_ince(case, dtype, folder):
    import ince
    from ince.data.example import Example
    from ince.models import packed_row_attention
    from ince.train import TrainConfig, train

    pack = ince_pack(dtype) if case["base"] == "nf4" else None
    model = drawn_model(case["shape"], dtype=dtype, device=case["device"], pack=pack)
    vocab = model.config.vocab_size
    lora = ince.LoraConfig(r=case["r"], lora_alpha=2 * case["r"], target_modules="all-linear")
    model = ince.get_peft_model(model, lora)
    targets = (False, *[True] * (case["tokens"] - 1))
    examples = [
        Example(tuple(ids), targets, f"row {i}") for i, ids in enumerate(rows_of(case, vocab))
    ]
    config = TrainConfig(
        max_steps=len(examples),
        batch_tokens=case["tokens"],
        schedule="constant",
        warmup_ratio=0.0,
        **case["train"],
    )
    with packed_row_attention(model.get_base_model()):
        train(
            model,
            examples,
            config,
            run_dir=folder,
            recipe_digest="",
            packing=False,
            max_length=case["tokens"],
            pad_id=0,
            observer=Silent(),
        )


class Silent:
    """Is told what happens, and keeps it."""

    def started(self, first_step, num_steps):
        pass

    def stepped(self, *report):
        pass

    def said(self, line):
        pass


def train_trl(case, dtype, folder):
    from datasets import Dataset
    from peft import LoraConfig  # noqa: TID251
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    device = case["device"]
    pack = bitsandbytes_pack(dtype, device) if case["base"] == "nf4" else None
    model = drawn_model(case["shape"], dtype=dtype, device=device, pack=pack)
    # So that PEFT and TRL take it for what it is.
    model.is_loaded_in_4bit = pack is not None
    rows = rows_of(case, model.config.vocab_size)
    inner = Tokenizer(models.BPE(vocab={"<s>": 0, "a": 1}, merges=[]))
    config = SFTConfig(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=1,
        max_length=case["tokens"],
        max_steps=len(rows),
        learning_rate=2e-4,
        lr_scheduler_type="constant",
        bf16=dtype == torch.bfloat16,
        use_cpu=device == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list([{"input_ids": ids, "labels": ids} for ids in rows]),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=inner, eos_token="<s>", pad_token="<s>"
        ),
        peft_config=LoraConfig(
            r=case["r"],
            lora_alpha=2 * case["r"],
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    ).train()


LIBRARIES = {"ince": train_ince, "TRL": train_trl}


def matmul_peak(dtype, device, size):
    """Operations in a second of a square product: the best of several."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    best = 0.0
    for _ in range(10):
        wait()
        start = time.perf_counter()
        for _ in range(5):
            a @ b
        wait()
        best = max(best, 5 * 2 * size**3 / (time.perf_counter() - start))
    return best


def run_case(case):
    """Figures of a case."""
    device = case["device"]
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    peak = matmul_peak(dtype, device, 256 if device == "cpu" else 8192)
    watch = PeakMemory() if device == "cpu" else None
    if device != "cpu":
        torch.cuda.empty_cache()
        if case["cap_bytes"]:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, case["cap_bytes"] / total))
        torch.cuda.reset_peak_memory_stats()
    clock = Clock(device)
    with tempfile.TemporaryDirectory() as place:
        LIBRARIES[case["library"]](case, dtype, Path(place))
    seconds = clock.seconds()
    if len(seconds) != case["steps"]:
        raise RuntimeError(f"{len(seconds)} steps were timed, not {case['steps']}")
    per_step = sorted(seconds)[len(seconds) // 2]
    # Products that cannot be avoided: none that recompute activations, none of attention.
    operations = num_operations(config_of(case["shape"]), case["tokens"], case["tokens"] - 1)
    if watch is None:
        memory = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    else:
        memory = watch.figures()["own_peak"], watch.figures()["peak"]
    return {
        "step_seconds": seconds,
        "tokens_per_second": case["tokens"] / per_step,
        "matmul_peak": peak,
        "share_of_peak": operations / per_step / peak,
        "peak_bytes": memory[0],
        "reserved_bytes": memory[1],
    }
