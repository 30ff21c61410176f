"""`AdaLoraConfig`: phases that fit the training, and nothing that it would pass over."""

import pytest

from ince.errors import ConfigError
from ince.lora.config import AdaLoraConfig


def problems(**values):
    with pytest.raises(ConfigError) as caught:
        AdaLoraConfig(**values)
    return {problem.key: str(problem) for problem in caught.value.problems}


def test_the_number_of_steps_is_required():
    assert problems() == {"total_step": "total_step: is required"}
    assert problems(total_step=0, beta1=1.0).keys() == {"total_step", "beta1"}


def test_the_phases_fit_into_the_training():
    AdaLoraConfig(total_step=10, tinit=3, tfinal=6)
    assert "leave none between" in problems(total_step=10, tinit=4, tfinal=6)["total_step"]


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"r": 4}, "r"),
        ({"use_rslora": True}, "use_rslora"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"target_r": 13}, "target_r"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters"),
        ({"rank_pattern": {"q.lora_E": [True] * 13}}, "rank_pattern"),
    ],
)
def test_what_it_would_pass_over_is_a_mistake(values, key):
    assert set(problems(total_step=10, **values)) == {key}


def test_in_a_file_unused_options_are_passed_over():
    values = {"peft_type": "ADALORA", "total_step": 10, "r": 4, "use_rslora": True}
    assert AdaLoraConfig.from_peft_dict(values).total_step == 10


def test_scaling_is_alpha_or_the_rank():
    config = AdaLoraConfig(total_step=1)
    assert config.scaling(12, 8) == 8
    assert config.scaling(12, 0) == 12
