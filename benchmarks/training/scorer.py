"""One judge for all: the held-out loss of a saved adapter, whoever trained it.

The base is ince's, in NF4 (the same codes and scales as bitsandbytes') or plain, in float32 with
each chat in a row of its own; the adapter is read from its folder in PEFT's format. The loss is
the mean cross-entropy of the tokens of assistant turns, stop tokens included.
"""


def run_scorer(spec, gate):
    """Serve ``{"adapter": folder or None, "quantize"}`` with ``{"loss", "num_targets"}``."""
    from ince.data import collate, load_split
    from ince.data.config import DataConfig
    from ince.evaluate import heldout_loss
    from ince.lora import PeftModel
    from ince.models import load_model
    from ince.quant import NF4Config

    def answer(adapter, quantize):
        import torch

        config = NF4Config(compute_dtype="float32") if quantize == "nf4" else None
        model, tokenizer = load_model(
            spec["model"], quantization=config, dtype=torch.float32, device="cpu"
        )
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter).get_base_model()
        split = load_split(
            spec["eval"], DataConfig(train=spec["eval"], max_length=spec["max_length"]), tokenizer
        )
        batches = [collate([example], pad_id=0) for example in split.examples]
        found = heldout_loss(model.eval(), batches)
        return {"loss": found.loss, "num_targets": split.report.num_targets}

    gate.serve(answer)
