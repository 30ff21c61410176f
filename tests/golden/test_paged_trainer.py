"""Optimizers that page, in transformers' own trainer: as torch's there, and resumed there."""

import torch
import transformers

from ince.optim import PagedAdamW, PagesConfig


def train(folder, tiny_llama, make, *, resume=None):
    model = tiny_llama(vocab_size=64, num_hidden_layers=1).requires_grad_(True)
    rows = [{"input_ids": (ids := [3 + i, 9, 4 + i, 7]), "labels": ids} for i in range(8)]
    arguments = transformers.TrainingArguments(
        str(folder),
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        save_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    trainer = transformers.Trainer(
        model, arguments, train_dataset=rows, optimizers=(make(model.parameters()), None)
    )
    trainer.train(resume_from_checkpoint=resume)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(ours, theirs):
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_it_is_torchs_optimizer_and_goes_on_under_other_budgets(tmp_path, tiny_llama):
    plain = train(tmp_path / "plain", tiny_llama, lambda p: torch.optim.AdamW(p, lr=1e-3))
    in_a_file = PagesConfig(memory=0, page_bytes=4096, directory=tmp_path)

    def paged(parameters):
        # torch's own default; Trainer keeps what the optimizer was made with.
        return PagedAdamW(parameters, lr=1e-3, weight_decay=1e-2, pages=in_a_file)

    assert same(train(tmp_path / "paged", tiny_llama, paged), plain)
    resumed = train(
        tmp_path / "resumed",
        tiny_llama,
        lambda p: PagedAdamW(p, lr=1e-3, weight_decay=1e-2),
        resume=str(tmp_path / "paged" / "checkpoint-2"),
    )
    assert same(resumed, plain)
