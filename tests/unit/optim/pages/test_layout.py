"""Every element has its state exactly once, wherever pages are cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ince.errors import ConfigError
from ince.optim.pages.layout import Item, cut
from ince.optim.rules import BLOCK, Slot

RULES = [
    (Slot("exp_avg", torch.float32), Slot("exp_avg_sq", torch.float32)),
    (Slot("exp_avg", torch.bfloat16),),
    (Slot("codes", torch.uint8), Slot("scales", torch.float32, per=BLOCK)),
]


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=6),
    page_bytes=st.integers(4096, 20_000),
    slots=st.sampled_from(RULES),
)
def test_pieces_tile_the_parameters_and_do_not_overlap(sizes, page_bytes, slots):
    items = [Item(key, size, torch.float32, slots) for key, size in enumerate(sizes)]
    end = dict.fromkeys(range(len(sizes)), 0)
    for page in cut(items, page_bytes):
        assert page.state_bytes <= page_bytes
        states = torch.zeros(page.state_bytes, dtype=torch.uint8)
        old = torch.zeros(page.old_bytes, dtype=torch.uint8)
        for piece in page.pieces:
            assert piece.start == end[piece.item.key]
            assert piece.start % BLOCK == 0
            end[piece.item.key] += piece.length
            for slot, view in zip(slots, piece.states(states).values(), strict=True):
                assert view.numel() == slot.numel(piece.length)
                assert (view == 0).all()  # nobody else's
                view.fill_(1)
            assert (piece.old_values(old) == 0).all()
            piece.old_values(old).fill_(1)
    assert list(end.values()) == sizes


def test_a_page_that_holds_no_block_is_refused():
    item = Item(0, 1000, torch.float64, RULES[0])
    with pytest.raises(ConfigError, match=r"page_bytes: 1.95 KiB is less than"):
        cut([item], 2000)
