import pytest

from ince.data.conversation import Conversation, Message, check_turns
from ince.errors import DataError

TALK = Conversation((Message("user", "a"), Message("assistant", "b")), "here")


def test_a_system_message_is_put_first_once():
    told = TALK.with_system("s")
    assert told.messages == (Message("system", "s"), *TALK.messages)
    assert told.with_system("t") is told
    assert TALK.with_system(None) is TALK


def test_a_part_keeps_the_system_message_and_what_is_prompt():
    long = Conversation((*TALK.messages, Message("user", "c"), Message("assistant", "d")), "x", 3)
    told = long.with_system("s")
    assert (long.num_system, told.num_system, told.num_prompt) == (0, 1, 4)
    assert long.part(2, 4) == Conversation(long.messages[2:], "x", 1)
    assert told.part(3, 5).messages == (Message("system", "s"), *long.messages[2:])
    assert told.part(3, 5).num_prompt == 2
    assert told.part(1, 3).num_prompt == 3, "all of it"
    assert told.part(0, 5) == told


def test_templates_take_dicts():
    assert TALK.to_dicts() == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]


def test_a_good_conversation_passes():
    check_turns(TALK.with_system("s").messages)


def test_nothing_is_learnt_from_nothing():
    with pytest.raises(DataError, match="no assistant turn"):
        check_turns(())
