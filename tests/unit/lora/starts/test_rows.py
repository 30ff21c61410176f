"""Which rows count: attended to, with a label, of whatever shape a layer sees them in."""

from types import SimpleNamespace

import pytest
import torch

from ince.errors import AdapterError, DataError
from ince.lora.config import EvaConfig
from ince.lora.starts.rows import (
    all_rows,
    prepare_layer_inputs_fn_language_modeling,
    prepare_model_inputs_fn_language_modeling,
    rows_by_layer,
)

BATCH = {
    "input_ids": torch.arange(6).view(2, 3),
    "attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1]]),
    "labels": torch.tensor([[-100, 1, 2], [3, 4, -100]]),
}
X = torch.arange(12.0).view(2, 3, 2)


def config(**settings):
    return SimpleNamespace(eva_config=EvaConfig(**settings))


def mask(batch=BATCH, **settings):
    return prepare_model_inputs_fn_language_modeling(batch, config(**settings))


def test_padding_and_prompts_do_not_count():
    assert mask().tolist() == [[False, True, True], [False, True, False]]
    assert mask(use_label_mask=False).tolist() == [[True, True, True], [False, True, True]]
    assert mask(label_mask_value=4).tolist() == [[True, True, True], [False, False, True]]
    assert mask({"input_ids": BATCH["input_ids"]}).all()


@pytest.mark.parametrize("batch", [BATCH["input_ids"], {"x": 1}, [1, 2]])
def test_another_batch_is_refused(batch):
    with pytest.raises(DataError, match="prepare_model_inputs_fn=None"):
        mask(batch)


def test_rows_of_a_layers_input():
    choose = prepare_layer_inputs_fn_language_modeling
    wanted = X[mask()]
    assert torch.equal(choose(X, mask(), "layer"), wanted)
    assert torch.equal(choose((X, None), mask(), "layer"), wanted)
    assert torch.equal(choose(X.flatten(0, 1), mask(), "layer"), wanted)
    # An expert sees some of the tokens, in an order of its own.
    assert choose(X.flatten(0, 1)[:4], mask(), "expert").shape == (4, 2)


def test_functions_by_layer():
    double = lambda x, prepared, name: 2 * all_rows(x, prepared, name)  # noqa: E731
    found = rows_by_layer({"base_model.model.a": double}, ["a", "b"])
    assert torch.equal(found["a"](X, None, "a"), 2 * X.flatten(0, 1))
    assert torch.equal(found["b"](X, None, "b"), X.flatten(0, 1))
    assert rows_by_layer(double, ["a"]) == {"a": double}
    with pytest.raises(AdapterError, match="not adapted"):
        rows_by_layer({"c": double}, ["a", "b"])
