"""Packed rows, shared beginnings included, give the packaged model's logits of single rows."""

import torch

from ince.data import DataConfig, attention_mask, collate, load_split, pack_rows
from ince.data.turkish import build_instructions, read_treebanks
from ince.models import attention_inputs, load_model, logits_only_at, packed_row_attention


def test_logits_of_a_packed_row_are_those_of_its_examples_alone(tmp_path, smollm2_folder):
    model, tokenizer = load_model(smollm2_folder, dtype=torch.float32, device="cpu")
    built = build_instructions(read_treebanks()[:400], tmp_path, num_test=4, num_eval=4)
    split = load_split(
        built.path("test"), DataConfig(train="test.jsonl", max_length=256), tokenizer
    )
    rows = pack_rows(split.examples, range(len(split.examples)), 256)
    num_alone = sum(example.num_tokens for example in split.examples)
    assert sum(row.num_tokens for row in rows) < 0.8 * num_alone
    batch = collate(rows, 2)
    inputs = attention_inputs(model, attention_mask(batch), batch.position_ids)
    row_index, place = (batch.labels != -100).nonzero(as_tuple=True)
    # With gradients, so that the attention used in training is what is compared.
    with packed_row_attention(model), logits_only_at(model, row_index, place - 1):
        packed = model(input_ids=batch.input_ids, **inputs).logits[0]
    documents = batch.document_ids[row_index, place]
    num_compared = 0
    # Packing keeps the order within a row, and `sources` tells which example is which.
    by_source = {example.source: example for example in split.examples}
    for number, source in enumerate(batch.sources, start=1):
        example = by_source[source]
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([example.input_ids])).logits[0]
        before = torch.tensor([i for i, target in enumerate(example.targets) if target]) - 1
        ours = packed[documents == number]
        torch.testing.assert_close(ours, alone[before], rtol=1e-3, atol=2e-3)
        num_compared += len(ours)
    assert num_compared == batch.num_targets > 20
