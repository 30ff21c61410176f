"""Names of adapters: which can be used, and which the model has."""

import pytest

from ince.errors import AdapterError
from ince.lora.placement.names import check_adapter_name, check_known


@pytest.mark.parametrize("name", ["default", "a-1_B", "0", "x" * 128])
def test_usable_names(name):
    check_adapter_name(name)


@pytest.mark.parametrize("name", ["", "a.b", "-a", "a b", "ü", "x" * 129, "train", None, 3])
def test_names_that_cannot_be_a_folder_and_a_key(name):
    with pytest.raises(AdapterError, match="not a usable adapter name"):
        check_adapter_name(name)


def test_an_unknown_name_shows_the_nearest_and_what_there_is():
    check_known("turkish", ["turkish", "finnish"])
    with pytest.raises(AdapterError, match="no adapter 'turkisch'") as caught:
        check_known("turkisch", ["turkish", "finnish"])
    assert caught.value.expected == "turkish, finnish"
    assert caught.value.do == "did you mean 'turkish'?"
    with pytest.raises(AdapterError, match="no adapter is left"):
        check_known("turkish", ())
