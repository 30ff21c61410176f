import pytest
import torch

from ince.errors import InputError
from ince.ops import add_lora_segments_
from ince.ops.backends import reference_only

X, Y = torch.randn(6, 5), torch.randn(6, 4)
# Two adapters of ranks 2 and 1: A, B, turn and shift of the first.
BLOCKS = [torch.randn(2 * 9 + 8), torch.randn(9)]
LAYOUT = [[0, 0, 3, 2, 0, 10, 18, 22], [1, 4, 6, 1, 0, 5, -1, -1]]


def layout(row=None, column=None, value=None):
    rows = torch.tensor(LAYOUT)
    if row is not None:
        rows[row, column] = value
    return rows


def test_the_operator_keeps_the_rules_of_torch_library():
    operator = torch.ops.ince.add_lora_segments_.default
    torch.library.opcheck(operator, (Y.clone(), X, BLOCKS, layout()))


def test_it_compiles_into_a_whole_graph():
    torch._dynamo.reset()

    def step(y, x, blocks, rows):
        y = y * 2
        add_lora_segments_(y, x, blocks, rows)
        return y.sin()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    args = X, BLOCKS, layout()
    torch.testing.assert_close(compiled(Y, *args), step(Y, *args))


def test_autograd_learns_that_the_result_was_written_into():
    y = Y.clone()
    before = y._version
    add_lora_segments_(y, X, BLOCKS, layout())
    assert y._version > before
    with torch.inference_mode():
        add_lora_segments_(Y.clone(), X, BLOCKS, layout())
    with pytest.raises(InputError, match="has no gradient"):
        add_lora_segments_(Y.clone().requires_grad_(), X, BLOCKS, layout())


def test_no_segments_and_no_rows_change_nothing():
    y = Y.clone()
    add_lora_segments_(y, X, [], layout()[:0])
    add_lora_segments_(y, X, BLOCKS, layout(0, 2, 0)[:1])
    assert torch.equal(y, Y)
    add_lora_segments_(Y[:0], X[:0], BLOCKS, torch.zeros(1, 8, dtype=torch.int64))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"y": Y.double(), "x": X.double()}, "do not know this type"),
        ({"x": X.half()}, "not of one layer"),
        ({"x": X[:5]}, "not of one layer"),
        ({"x": X[0]}, "not of one layer"),
        ({"blocks": [BLOCKS[0].half(), BLOCKS[1]]}, "not the block of an adapter"),
        ({"blocks": [BLOCKS[0], BLOCKS[1][None]]}, "not the block of an adapter"),
        ({"blocks": [BLOCKS[0], BLOCKS[1].to("meta")]}, "on two devices"),
        ({"layout": layout().int()}, "not a layout"),
        ({"layout": layout()[0]}, "not a layout"),
        ({"layout": layout()[:, :7]}, "not a layout"),
        ({"layout": layout(1, 1, 2)}, "must follow each other"),
        ({"layout": layout(1, 1, 7)}, "must follow each other"),
        ({"layout": layout(1, 2, 7)}, "must follow each other"),
        ({"layout": layout(0, 1, -1)}, "must follow each other"),
        ({"layout": layout(0, 0, 2)}, "without such a block"),
        ({"layout": layout(0, 0, -1)}, "without such a block"),
        ({"layout": layout(0, 3, -1)}, "without such a block"),
        ({"layout": layout(0, 3, 2**61)}, "outside of its block"),
        ({"layout": layout(0, 4, 17)}, "outside of its block"),
        ({"layout": layout(0, 4, -1)}, "outside of its block"),
        ({"layout": layout(0, 5, 2**63 - 1)}, "outside of its block"),
        ({"layout": layout(0, 6, -2)}, "outside of its block"),
        ({"layout": layout(0, 7, 23)}, "outside of its block"),
        ({"layout": layout(1, 5, 6)}, "outside of its block"),
        # Tensors that keep their place, and change what they are.
        ({"blocks": [BLOCKS[0], BLOCKS[1][:8]]}, "outside of its block"),
        ({"blocks": BLOCKS[:1]}, "without such a block"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(changes, what):
    args = {"y": Y.clone(), "x": X, "blocks": BLOCKS, "layout": layout()} | changes
    before = args["y"].clone()
    add_lora_segments_(Y.clone(), X, BLOCKS, layout())
    with pytest.raises(InputError, match=what):
        add_lora_segments_(**args)
    with pytest.raises(InputError, match=what), reference_only():
        add_lora_segments_(**args)
    assert torch.equal(args["y"], before)
