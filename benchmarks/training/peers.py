"""The peers as their users run them: TRL's `SFTTrainer`, and a plain loop over full rows.

Both adapt with PEFT, over a base in bitsandbytes' NF4 or in 16 bits. Settings that the comparison
fixes are those of `train_cpu.py`; all others are the libraries' own defaults, among them TRL's
gradient checkpointing.
"""

import json
from pathlib import Path

from training.marks import marked_template, tokens_and_targets

IGNORED = -100


def read_chats(path):
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


def load_base(spec):
    """The base in NF4 or in the dtype of products, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    dtype = getattr(torch, spec["dtype"])
    options = {"dtype": dtype, "device_map": {"": spec.get("device", "cpu")}}
    if spec["quantize"] == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model = AutoModelForCausalLM.from_pretrained(spec["model"], **options)
    return model, AutoTokenizer.from_pretrained(spec["model"])


def lora_config(spec):
    from peft import LoraConfig  # noqa: TID251

    return LoraConfig(
        r=spec["r"], lora_alpha=2 * spec["r"], target_modules="all-linear", task_type="CAUSAL_LM"
    )


class CountingCollator:
    """A collator that keeps what it gave: tokens, targets, and places with padding."""

    def __init__(self, collator):
        self._collator = collator
        self.steps = []

    def __call__(self, examples):
        batch = self._collator(examples)
        targets = int((batch["labels"][:, 1:] != IGNORED).sum())
        self.steps.append((int(batch["attention_mask"].sum()), targets, batch["labels"].numel()))
        return batch


def run_trl(spec, gate):
    """`SFTTrainer` on short chats: no packing, loss on the assistant's turns."""
    import torch
    from datasets import Dataset
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    set_seed(spec["seed"])
    model, tokenizer = load_base(spec)
    tokenizer.chat_template = marked_template(tokenizer)
    config = SFTConfig(
        output_dir=spec["folder"] + "/trainer",
        per_device_train_batch_size=spec["batch_chats"],
        num_train_epochs=spec["epochs"],
        max_steps=spec["max_steps"] or -1,
        max_length=spec["max_length"],
        assistant_only_loss=True,
        learning_rate=spec["lr"],
        lr_scheduler_type="constant",
        bf16=spec["dtype"] == "bfloat16",
        use_cpu=True,
        seed=spec["seed"],
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list([{"messages": c} for c in read_chats(spec["train"])]),
        processing_class=tokenizer,
        peft_config=lora_config(spec),
    )
    if spec["dtype"] == "float32":
        # TRL casts the adapters over a 4-bit base to bfloat16, whatever the run's type: where
        # the processor does not multiply that, the run would be slow for that alone.
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)
    counter = trainer.data_collator = CountingCollator(trainer.data_collator)
    adapter = spec["folder"] + "/adapter"
    gate.open(lambda: {"counts": counter.steps})
    trainer.train()
    gate.close()
    trainer.save_model(adapter)
    return {"counts": counter.steps, "adapter": adapter}


def full_rows(spec, tokenizer):
    """Chats one after the other, cut into rows of one length: (input_ids, labels) of each."""
    template = marked_template(tokenizer)
    tokens, labels = [], []
    for chat in read_chats(spec["train"]):
        ids, targets = tokens_and_targets(tokenizer, template, chat)
        tokens += ids
        labels += [i if is_target else IGNORED for i, is_target in zip(ids, targets, strict=True)]
    length = spec["row_tokens"]
    starts = range(0, len(tokens) - length + 1, length)
    return [(tokens[s : s + length], labels[s : s + length]) for s in starts]


def run_plain(spec, gate):
    """The loop that a tutorial shows, at its best: no padding, a few full rows a forward."""
    import torch
    from peft import get_peft_model  # noqa: TID251
    from transformers import set_seed

    set_seed(spec["seed"])
    model, tokenizer = load_base(spec)
    model = get_peft_model(model, lora_config(spec)).train()
    rows = full_rows(spec, tokenizer)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=spec["lr"], weight_decay=0.0)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(spec["seed"]))
    counts = []
    gate.open(lambda: {"counts": counts})
    for step in order.split(spec["rows_in_step"]):
        chosen = [rows[i] for i in step.tolist()]
        targets = sum(label != IGNORED for _, labels in chosen for label in labels[1:])
        for start in range(0, len(chosen), spec["rows_in_forward"]):
            some = chosen[start : start + spec["rows_in_forward"]]
            model(
                input_ids=torch.tensor([ids for ids, _ in some]),
                labels=torch.tensor([labels for _, labels in some]),
                num_items_in_batch=targets,
            ).loss.backward()
        tokens = len(chosen) * spec["row_tokens"]
        counts.append((tokens, targets, tokens))
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    gate.close()
    adapter = spec["folder"] + "/adapter"
    model.save_pretrained(adapter)
    return {"counts": counts, "adapter": adapter}
