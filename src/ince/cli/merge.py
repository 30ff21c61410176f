"""``ince merge``: adapter and base to one 16-bit model, with the proof that it says the same."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ince.cli.output import common_options, print_json, progress_console, result_console
from ince.cli.target import QuantizeChoice, find_target, load_target
from ince.errors import InputError, OutputError
from ince.files import replace_folder, write_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

__all__ = ["merge"]

PROOF_FILE = "merge.json"

# Read by both models. What matters is not what they say but that each layer has work to do:
# several languages, code and numbers.
_PROBES = (
    "What is the capital of Turkey, and what is it known for?",
    "Write a short poem about the sea in autumn.",
    "Türkçede büyük ünlü uyumu nedir? Bir örnekle açıkla.",
    "Explain this line of Python: mean = sum(values) / len(values)",
    "1, 1, 2, 3, 5, 8, 13: what comes next, and why?",
)


def _probes(tokenizer: "PreTrainedTokenizerBase") -> Iterator["Tensor"]:
    """(1, L) int64 each: the probes as the model is asked, or as plain text without a template."""
    import torch

    from ince.data import Message
    from ince.infer.prompt import encode_prompt

    for probe in _PROBES:
        if tokenizer.chat_template:
            ids = encode_prompt(tokenizer, [Message("user", probe)])
        else:
            encoded: Any = tokenizer(probe)
            ids = [int(token) for token in encoded["input_ids"]]
        yield torch.tensor([ids])


def _check_free(out: Path) -> None:
    # Before minutes are spent, not after.
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise OutputError(
            "the output folder is not empty",
            where=out,
            expected="a new or empty folder",
            do="choose another folder, or remove this one",
        )


@click.command(
    epilog="Example: ince merge runs/turkish --out models/turkish",
)
@click.argument("target")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder of the new model; it must be new or empty.",
)
@click.option("--base", help="The adapter's base, when it is not where the adapter says.")
@click.option(
    "--quantize",
    type=click.Choice(["nf4", "none"]),
    help="Bits that the base had in training; known for a run, else 16.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@common_options
def merge(
    target: str,
    out: Path,
    base: str | None,
    quantize: QuantizeChoice | None,
    device: str,
    as_json: bool,
) -> None:
    """Merge TARGET (a run or an adapter) into its base: one model folder that needs no adapter.

    The model is written, read back and compared with the adapter on logits. When they do not
    agree nothing is left in --out, and the exit code is 3. Run and adapter stay as they are.
    """
    import torch

    from ince.lora import PeftModel
    from ince.models import load_model
    from ince.publish import (
        ROUNDED_LIMIT,
        assert_parity,
        compare_logits,
        float32_copy,
        merge_to_folder,
    )
    from ince.recipe.progress import RunProgress

    console = progress_console()
    found = find_target(target, base=base, quantize=quantize)
    if found.trained_from is not None:
        raise InputError(
            "there is nothing to merge: every weight of this run was trained",
            where=target,
            do=f"use {found.base} as it is; it stands alone",
        )
    if found.adapter is None:
        raise InputError(
            "there is no adapter to merge",
            where=target,
            expected="a run or an adapter folder",
            do="check the path: an adapter folder has an adapter_config.json, a run a run.json",
        )
    _check_free(out)
    loaded = load_target(found, console, device=device)
    assert isinstance(loaded.adapted, PeftModel)
    with replace_folder(out) as folder:
        console.print("merging")
        merge_to_folder(loaded.adapted, loaded.tokenizer, folder)
        console.print("comparing the merged model with the adapter")
        with RunProgress(console).bars() as report:
            merged, _ = load_model(folder, dtype=torch.float32, device=device, progress=report)
        # Both in float32: a model's own rounding is larger than what a merge may change.
        parity = compare_logits(float32_copy(loaded.adapted), merged, _probes(loaded.tokenizer))
        assert_parity(parity, ROUNDED_LIMIT)
        facts: dict[str, object] = {
            "base": found.base,
            "adapter": str(found.adapter),
            "parity": {**asdict(parity), "limit": ROUNDED_LIMIT, "holds": True},
        }
        write_json(folder / PROOF_FILE, facts)
    if as_json:
        print_json({"model": str(out), **facts})
        return
    stdout = result_console()
    stdout.print(
        f"merged model agrees with the adapter: logits differ by at most "
        f"{parity.max_abs_logit_diff:.3g} (limit {ROUNDED_LIMIT:g}), the likeliest token agrees at "
        f"{parity.argmax_agreement:.1%} of {parity.num_positions} positions",
        markup=False,
    )
    stdout.print(f"model      {out}", markup=False)
