import json

import pytest
import torch
from pydantic import ValidationError

from ince.errors import ConfigError
from ince.quant import NF4Config


def test_the_defaults_are_those_of_qlora():
    config = NF4Config()
    assert (config.blocksize, config.double_quant) == (64, True)
    assert config.torch_dtype is torch.bfloat16
    assert config.skip_modules == ()


def test_bits_per_weight_count_the_scales():
    assert round(NF4Config().bits_per_weight, 3) == 4.127
    assert NF4Config(double_quant=False).bits_per_weight == 4.5
    assert NF4Config(blocksize=32, double_quant=False).bits_per_weight == 5


def test_it_survives_json():
    config = NF4Config(blocksize=128, double_quant=False, skip_modules=["lm_head", "layers.0"])
    assert NF4Config.model_validate_json(config.model_dump_json()) == config
    assert NF4Config.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("dtype", [torch.float16, "float16"])
def test_the_dtype_is_a_name_or_pytorchs_own(dtype):
    assert NF4Config(compute_dtype=dtype).compute_dtype == "float16"


def test_all_mistakes_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        NF4Config(blocksise=64, blocksize=48, compute_dtype="int8", double_quant="yes")
    problems = {problem.key: str(problem) for problem in caught.value.problems}
    assert sorted(problems) == ["blocksise", "blocksize", "compute_dtype", "double_quant"]
    assert "did you mean 'blocksize'?" in problems["blocksise"]
    assert "got 48" in problems["blocksize"]


@pytest.mark.parametrize("blocksize", [0, -64, 16, 100, 8192, 64.0, "64", None, True])
def test_other_blocksizes_are_refused(blocksize):
    with pytest.raises(ConfigError):
        NF4Config(blocksize=blocksize)


@pytest.mark.parametrize("skip_modules", ["lm_head", [""], [3], None])
def test_other_skip_modules_are_refused(skip_modules):
    with pytest.raises(ConfigError):
        NF4Config(skip_modules=skip_modules)


def test_a_config_does_not_change():
    with pytest.raises(ValidationError):
        NF4Config().blocksize = 128


def test_it_answers_as_transformers_asks():
    config = NF4Config(blocksize=128, skip_modules=("lm_head",))
    assert config.quant_method == config.get("quant_method") == "ince"
    assert config.get("blocksize") == 128
    assert config.get("load_in_8bit", False) is False
    fields = config.to_dict()
    assert fields.pop("quant_method") == "ince"
    assert NF4Config.model_validate(json.loads(json.dumps(fields))) == config
