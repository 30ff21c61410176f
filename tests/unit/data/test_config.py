import pytest
from pydantic import ValidationError

from ince.data.config import DataConfig


def test_the_defaults_are_those_of_the_design():
    assert DataConfig(train="a.jsonl").model_dump() == {
        "train": "a.jsonl",
        "eval": None,
        "format": "auto",
        "max_length": 1024,
        "packing": True,
        "share_beginnings": True,
        "loss_on": "assistant",
        "system": None,
        "truncation": "right",
        "on_bad_row": "error",
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss_on": "user"},
        {"format": "jsonl"},
        {"max_length": 1},
        {"truncation": "middle"},
        {"on_bad_row": "ignore"},
        {"sytem": "x"},
    ],
)
def test_a_wrong_value_is_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        DataConfig(train="a.jsonl", **wrong)
