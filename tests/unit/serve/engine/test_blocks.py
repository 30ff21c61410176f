import pytest
from hypothesis import given
from hypothesis import strategies as st

from ince.errors import InputError
from ince.serve.engine.blocks import BLOCK_SIZE, BlockPool
from ince.serve.engine.prefix import PrefixKeys


def test_idle_blocks_give_way_the_longest_idle_first_and_ends_before_beginnings():
    pool = BlockPool(4)
    first, second = pool.allocate(2), pool.allocate(2)
    for name, blocks in (("a", first), ("b", second)):
        for i, block in enumerate(blocks):
            pool.seal(block, f"{name}{i}".encode())
    pool.release(first)
    pool.release(second)
    assert pool.num_available == 4
    taken = pool.allocate(1)
    assert taken == [first[1]]
    assert pool.match([b"a0", b"a1"]) == [first[0]]
    assert pool.match([b"b0", b"b1"]) == second
    assert pool.match([b"a1"]) == []


def test_shared_blocks_are_not_given_away():
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    pool.seal(blocks[0], b"x")
    pool.release(blocks)
    assert pool.num_idle_of(blocks) == 1
    pool.share(blocks)
    assert pool.num_idle_of(blocks) == 0
    pool.share(blocks)
    assert pool.allocate(2) is None
    pool.release(blocks)
    assert pool.num_used == 1
    pool.release(blocks)
    assert pool.num_used == 0


def test_two_blocks_of_one_prefix_are_found_as_the_first():
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.seal(first, b"x")
    pool.seal(second, b"x")
    assert pool.match([b"x"]) == [first]
    pool.release([second])
    assert pool.num_findable == 1
    assert pool.allocate(1) == [second]


def test_what_is_forgotten_is_not_found_and_its_users_keep_it():
    pool = BlockPool(3)
    used, idle = pool.allocate(2)
    pool.seal(used, b"u")
    pool.seal(idle, b"i")
    pool.release([idle])
    pool.forget()
    assert pool.match([b"u"]) == pool.match([b"i"]) == []
    assert pool.num_used == 1
    assert sorted(pool.allocate(2)) == sorted({0, 1, 2} - {used})


def test_misuse_is_an_error():
    pool = BlockPool(1)
    with pytest.raises(InputError, match="released"):
        pool.release([0])
    with pytest.raises(InputError, match="sealed"):
        pool.seal(0, b"x")
    with pytest.raises(InputError, match="block at least"):
        BlockPool(0)


names = st.sampled_from(["", "a", "b", "ab", "\x00", "base"])
owners = st.tuples(names, names, st.none() | names)
tokens = st.lists(st.integers(0, 1), min_size=BLOCK_SIZE, max_size=BLOCK_SIZE + 2)


@given(owners, owners, tokens, tokens)
def test_keys_are_equal_only_for_equal_owners_and_tokens(first, second, one, other):
    equal = first == second and one[:BLOCK_SIZE] == other[:BLOCK_SIZE]
    keys = PrefixKeys(*first).of(one, 1), PrefixKeys(*second).of(other, 1)
    assert (keys[0] == keys[1]) == equal


def test_a_key_depends_on_all_blocks_before_it():
    late = [5] * BLOCK_SIZE
    key = PrefixKeys("", "", None).of([1] * BLOCK_SIZE + late, 2)[1]
    assert key == PrefixKeys("", "", None).of([1] * BLOCK_SIZE + late, 2)[1]
    assert key != PrefixKeys("", "", None).of([2] * BLOCK_SIZE + late, 2)[1]


def test_keys_grow_with_the_tokens_and_unfinished_blocks_have_none():
    keys, told = PrefixKeys("t", "", "d"), list(range(2 * BLOCK_SIZE - 1))
    assert len(keys.of(told, 2)) == 1
    told.append(7)
    assert keys.of(told, 2) == PrefixKeys("t", "", "d").of(told, 5)
    assert len(keys.of(told, 1)) == 1
