"""`VeraConfig`: its options, and no scale."""

import pytest

from ince.errors import ConfigError
from ince.lora.config import VeraConfig


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"r": 0}, "r"),
        ({"projection_prng_key": "x"}, "projection_prng_key"),
        ({"vera_dropout": 1.0}, "vera_dropout"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_alpha": 3}, "lora_alpha"),
        ({"target_modules": []}, "target_modules"),
        ({"d_initial": float("nan")}, "d_initial"),
    ],
)
def test_mistakes_are_named(values, key):
    with pytest.raises(ConfigError) as caught:
        VeraConfig(**values)
    assert [problem.key for problem in caught.value.problems] == [key]


def test_a_file_round_trips():
    config = VeraConfig(r=4, target_modules=["q_proj"], save_projection=False)
    assert VeraConfig.from_peft_dict(config.to_peft_dict()) == config
