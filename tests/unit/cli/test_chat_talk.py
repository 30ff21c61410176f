import pytest

from ince.cli.chat_talk import COMMANDS, completions

NAMES = ["turkish", "tatar", "german"]


@pytest.mark.parametrize(
    ("before", "word", "expected"),
    [
        ("", "/a", ["/adapter "]),
        ("", "/", [name.replace(" NAME", " ").replace(" TEXT", " ") for name in COMMANDS]),
        ("", "Hello", []),
        ("", "", []),
        ("/adapter ", "t", ["turkish", "tatar"]),
        ("/adapter ", "", [*NAMES, "base"]),
        ("/adapter turkish ", "t", []),
        ("/system ", "t", []),
        ("say /adapter ", "t", []),
    ],
)
def test_tab_completes_commands_and_adapters(before, word, expected):
    assert completions(before, word, NAMES) == expected
