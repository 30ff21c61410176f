"""EVA on small modules: what is watched, when watching ends, and what is refused."""

import pytest
import torch
from torch import nn

from ince.errors import DataError
from ince.lora.starts.eva import Watched, input_directions
from ince.lora.starts.rows import all_rows


class Pair(nn.Module):
    """Two layers read one tensor, a third reads another, a fourth nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.o, self.idle = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        return self.o(self.q(x) + self.k(input=x))


SCALES = torch.tensor([10.0, 5, 2, 1, 0.5, 0.3, 0.2, 0.1])


def batches(num=8, num_rows=200):
    torch.manual_seed(1)
    return [torch.randn(num_rows, 8) * SCALES + 3 for _ in range(num)]


def start(model, data, names=("q", "k", "o"), r=2, max_rank=2, tau=0.99, **options):
    watched = {name: Watched(model.get_submodule(name), 8, r, max_rank) for name in names}
    rows = lambda name, args, batch: all_rows(args, batch, name)  # noqa: E731
    return input_directions(watched, data, model, rows, tau=tau, **options)


def test_directions_are_the_principal_ones_and_shared_where_inputs_are():
    model, data = Pair(), batches()
    a = start(model, data, tau=1.0)
    assert torch.equal(a["q"], a["k"])
    rows = torch.cat(data)
    v = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:2]
    assert torch.linalg.svdvals(a["q"] @ v.t()).min() > 0.999
    for a_RD in a.values():
        torch.testing.assert_close(a_RD @ a_RD.t(), torch.eye(2), rtol=0, atol=1e-5)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_reading_stops_when_directions_stand_still():
    seen = []

    def data():
        for batch in batches():
            seen.append(1)
            yield batch

    settled = []
    start(Pair(), data(), progress=lambda done, total: settled.append((done, total)))
    assert 2 <= len(seen) < 8
    assert settled[-1] == (3, 3)


def test_reading_ends_with_the_data_though_they_turn():
    torch.manual_seed(0)
    white = [torch.randn(20, 8) for _ in range(3)]
    assert start(Pair(), white, tau=1.0)["q"].shape == (2, 8)


def test_ranks_move_to_richer_inputs():
    torch.manual_seed(0)
    data = [torch.randn(200, 1) * torch.ones(8) + 0.1 * torch.randn(200, 8) for _ in range(3)]
    model = Pair()
    nn.init.normal_(model.o.weight)
    rich = nn.Linear(8, 8)

    def read(batch):
        model(batch)
        rich(torch.randn(200, 8))

    watched = {name: Watched(module, 8, 3, 6) for name, module in (("q", model.q), ("rich", rich))}
    rows = lambda name, args, batch: all_rows(args, batch, name)  # noqa: E731
    a = input_directions(watched, data, read, rows, tau=1.0)
    assert a["q"].shape[0] < 3 < a["rich"].shape[0]
    assert a["q"].shape[0] + a["rich"].shape[0] == 6


def test_whitening_divides_once_each_layer():
    plain, white = (start(Pair(), batches(), tau=1.0, whiten=w) for w in (False, True))
    assert torch.equal(white["q"], white["k"])
    rows = torch.cat(batches())
    strengths = torch.linalg.svdvals(rows - rows.mean(0))[:2]
    torch.testing.assert_close(
        white["q"], plain["q"] / strengths.sqrt()[:, None], rtol=1e-3, atol=1e-5
    )


def test_small_batches_add_up():
    assert start(Pair(), batches(num=9, num_rows=1), r=3, max_rank=3)["o"].shape == (3, 8)


@pytest.mark.parametrize(
    ("data", "names", "text"),
    [
        ([], ["q"], "no batch"),
        (batches(2), ["q", "idle"], "1 of 2 layers saw no row"),
        ([torch.full((9, 8), float("nan"))], ["q"], "not finite"),
        (batches(1, 2), ["q"], "more rows"),
    ],
)
def test_data_that_do_not_tell_are_refused_and_hooks_are_gone(data, names, text):
    model = Pair()
    with pytest.raises(DataError, match=text):
        start(model, data, names)
    assert not any(module._forward_pre_hooks for module in model.modules())
