import pytest
import torch

from ince.formats.adapter import write_adapter
from ince.lora.insight import inspect_adapter
from ince.report.adapter_facts import facts_of, one_line, percent, short_number

P = "base_model.model."


@pytest.fixture
def inspected(tmp_path):
    def make(tensors, **config):
        write_adapter(
            tmp_path / "a", {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | config, tensors
        )
        return inspect_adapter(tmp_path / "a")

    return make


def layer(module, r=2):
    return {
        f"{P}{module}.lora_A.weight": torch.ones(r, 6),
        f"{P}{module}.lora_B.weight": torch.ones(5, r),
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (2.0, "2.00"),
        (0.01234, "0.0123"),
        (123.4, "123"),
        (12345.6, "12,346"),
        (0, "0.00"),
    ],
)
def test_numbers_have_three_digits(value, shown):
    assert short_number(value) == shown


def test_percent():
    assert percent(0.0412) == "4.12%"
    assert percent(None) == "–"


def test_what_an_adapter_is(inspected):
    tensors = layer("layers.0.q") | layer("layers.1.q", 3)
    found = inspected(tensors, rank_pattern={"layers.1.q": 3}, target_modules=["q"])
    facts = dict(facts_of(found))
    assert facts["rank"] == "2 to 3"
    assert facts["scale"] == "1.333 to 2"
    assert facts["targets"] == "q"
    assert facts["base"] == "not named"
    assert facts["parameters"] == "55 in 2 weights of 2 layers"
    assert one_line(found) == "LoRA, rank 2 to 3, 55 parameters"


def test_what_is_beside_the_layers(inspected):
    tensors = layer("layers.0.q") | {
        f"{P}layers.0.q.lora_magnitude_vector": torch.arange(1.0, 6.0),
        f"{P}score.weight": torch.ones(2, 8),
        f"{P}e.token_adapter.trainable_tokens_delta": torch.ones(3, 4),
        f"{P}layers.0.q.base_layer.bias": torch.ones(4),
    }
    found = inspected(
        tensors, use_dora=True, modules_to_save=["score"], bias="all", init_lora_weights="pissa"
    )
    facts = dict(facts_of(found))
    assert facts["method"] == "DoRA"
    assert facts["magnitude m"] == "1.00 to 5.00"
    assert facts["module"] == "score.weight: 2 x 8, norm 4.00"
    assert facts["token rows"] == "e: 3 x 4, norm 3.46"
    assert facts["biases"] == "1 with 4 values, norm 2.00"
    assert "changed" in facts["start"]


def test_names_of_strangers_are_made_visible(inspected):
    found = inspected(layer("layers.0.q"), base_model_name_or_path="a\u202eb\x1b[31m")
    assert "\u202e" not in dict(facts_of(found))["base"]
    assert "\x1b" not in one_line(found)
