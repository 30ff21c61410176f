import pytest
import torch

from ince.errors import InputError
from ince.ops import dense_linear
from ince.ops.backends import reference_only

X, WEIGHT, BIAS = torch.randn(6, 5), torch.randn(4, 5), torch.randn(4)


def test_the_operator_keeps_the_rules_of_torch_library():
    torch.library.opcheck(torch.ops.ince.dense_linear.default, (X, WEIGHT, BIAS))


def test_it_compiles_into_a_whole_graph():
    torch._dynamo.reset()

    def product(x):
        return dense_linear(x * 2, WEIGHT, BIAS).sin()

    compiled = torch.compile(product, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), product(X))


@pytest.mark.parametrize("asking", ["x", "weight", "bias"])
def test_a_gradient_is_refused_and_not_lost(asking):
    args = {"x": X.clone(), "weight": WEIGHT.clone(), "bias": BIAS.clone()}
    args[asking].requires_grad_()
    with pytest.raises(InputError, match="has no gradient"):
        dense_linear(**args)
    with torch.no_grad():
        torch.testing.assert_close(
            dense_linear(**args), torch.nn.functional.linear(X, WEIGHT, BIAS)
        )


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"x": X.double(), "weight": WEIGHT.double()}, "do not know this type"),
        ({"x": torch.tensor(1.0)}, "has no row"),
        ({"x": X.half()}, "not the weight"),
        ({"weight": WEIGHT[0]}, "not the weight"),
        ({"x": X[:, :4]}, "does not fit the weight"),
        ({"bias": BIAS[:3]}, "bias does not fit"),
        ({"bias": BIAS.half()}, "of another type"),
        ({"weight": WEIGHT.to("meta")}, "on two devices"),
    ],
)
def test_what_does_not_fit_is_refused(changes, what):
    args = {"x": X, "weight": WEIGHT, "bias": BIAS} | changes
    with torch.no_grad(), pytest.raises(InputError, match=what):
        dense_linear(**args)
    with torch.no_grad(), reference_only(), pytest.raises(InputError, match=what):
        dense_linear(**args)
