"""Options that are wrong are all named, by the configs that share the check."""

import pytest

from ince import NF4Config
from ince.errors import ConfigError
from ince.optim import PagesConfig


def problems_of(config, **options):
    with pytest.raises(ConfigError) as caught:
        config(**options)
    return caught.value


def test_unknown_and_wrong_options_are_named_together():
    error = problems_of(NF4Config, blocksiz=64, blocksize=7, double_quant="perhaps")
    assert error.what == "the NF4 config has mistakes"
    assert [problem.key for problem in error.problems] == ["blocksiz", "blocksize", "double_quant"]
    unknown, wrong, _ = error.problems
    assert (unknown.what, "blocksize" in unknown.suggestion) == ("no such option", True)
    assert wrong.what.endswith("got 7")


def test_a_mistake_of_no_single_option_is_the_whole_configs():
    error = problems_of(PagesConfig, device=0, memory=0, file=0)
    assert error.what == "the pages have mistakes"
    assert [(p.key, p.what) for p in error.problems] == [("pages", "no tier may hold anything")]


def test_a_config_passes_as_it_is():
    config = PagesConfig(memory="1MiB", page_bytes=4096)
    assert PagesConfig.model_validate(config) is config
