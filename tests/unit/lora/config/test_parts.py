"""Settings of starts: PEFT's names and defaults, all mistakes at once."""

import dataclasses

import peft
import pytest

from ince.errors import ConfigError
from ince.lora.config import EvaConfig, LoftQConfig, LoraGAConfig, LoraRuntimeConfig

PAIRS = [
    (EvaConfig, peft.EvaConfig),
    (LoftQConfig, peft.LoftQConfig),
    (LoraGAConfig, peft.LoraGAConfig),
    (LoraRuntimeConfig, peft.LoraRuntimeConfig),
]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_defaults_are_pefts(ours, theirs):
    assert ours().model_dump() == dataclasses.asdict(theirs())


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (EvaConfig, {"rho": 0.9, "tau": 1.1, "whiten": 1, "label_mask_value": "x"}),
        (LoftQConfig, {"loftq_bits": 3, "loftq_iter": 0}),
        (LoraGAConfig, {"direction": "ArB", "scale": "unstable", "stable_gamma": 0}),
        (LoraRuntimeConfig, {"ephemeral_gpu_offload": True}),
    ],
)
def test_all_mistakes_are_reported_together(kind, values):
    with pytest.raises(ConfigError) as caught:
        kind(**values)
    assert {problem.key for problem in caught.value.problems} == set(values)


def test_the_ends_of_their_ranges_are_taken():
    EvaConfig(rho=1, tau=0)
    EvaConfig(rho=1.0, tau=1)
    LoftQConfig(loftq_bits=2)
