from ince.lora.allocation.pattern import masks_by_module, pattern_of, within
from ince.lora.config import AdaLoraConfig


def test_keys_with_and_without_the_name_of_an_adapter():
    masks = {"a.q.lora_E": (True, False), "a.v.lora_E.default": (False, True)}
    config = AdaLoraConfig(total_step=5, init_r=2, target_r=1, rank_pattern=masks)
    assert masks_by_module(config) == {"a.q": (True, False), "a.v": (False, True)}
    assert pattern_of({"a.q": (True,)}) == {"a.q.lora_E": (True,)}
    assert pattern_of({}) is None
    assert masks_by_module(AdaLoraConfig(total_step=5)) == {}


def test_a_mask_within_the_ranks_that_are_there():
    assert within((True, False, True), None) == (True, False, True)
    assert within((True, False, False), (True, False, True)) == (True, False)
