"""The public surface, frozen: a name that goes or comes is a decision, not an accident."""

import pytest

import ince


def test_the_names_of_the_library():
    assert ince.__all__ == [
        "InceError",
        "Linear4bit",
        "LoraConfig",
        "NF4Config",
        "PeftModel",
        "Recipe",
        "get_peft_model",
        "load_model",
        "load_recipe",
        "run_recipe",
    ]


@pytest.mark.parametrize("name", ince.__all__)
def test_each_is_there(name):
    assert getattr(ince, name).__name__ == name
    assert name in dir(ince)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'lora'"):
        ince.__getattr__("lora")
