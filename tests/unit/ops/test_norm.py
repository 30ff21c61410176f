import pytest
import torch

from ince.errors import InputError
from ince.ops import rms_norm, rms_norm_add_input_grad_, rms_norm_input_grad

OPS = torch.ops.ince
EPS = 1e-5


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exact_gradients(x, weight, dy, offset):
    x, weight = (t.detach().double().requires_grad_() for t in (x, weight))
    y = x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * (weight + offset)
    return torch.autograd.grad(y, (x, weight), dy.double())


@pytest.mark.parametrize("offset, weight_in_float32", [(0.0, False), (0.0, True), (1.0, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_go_to_the_input_and_the_weight(offset, weight_in_float32, dtype):
    x = draw(2, 7, 40, dtype=dtype).requires_grad_()
    weight = draw(40, dtype=dtype, seed=1).requires_grad_()
    y, rstd = rms_norm(x, weight, EPS, offset, weight_in_float32=weight_in_float32)
    assert y.dtype == dtype
    assert not rstd.requires_grad
    dy = draw(2, 7, 40, dtype=dtype, seed=2)
    y.backward(dy)
    close = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    expected_grads = exact_gradients(x, weight, dy, offset)
    for found, expected in zip((x.grad, weight.grad), expected_grads, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=close, atol=close)


def test_a_frozen_weight_gets_no_gradient():
    x, weight = draw(3, 8).requires_grad_(), draw(8)
    y, _ = rms_norm(x, weight, EPS)
    y.sum().backward()
    assert weight.grad is None
    assert x.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_weight_in_float32_gives_what_its_model_would(dtype):
    x, weight = draw(3, 8, dtype=dtype), draw(8)
    assert rms_norm(x, weight, EPS)[0].dtype == torch.float32
    assert rms_norm(x, weight, EPS, 1.0)[0].dtype == dtype
    assert rms_norm(x, weight, EPS, weight_in_float32=True)[0].dtype == dtype


def test_a_gradient_is_added_to_that_of_the_stream():
    x, weight, dy, residual = draw(4, 6), draw(6, seed=1), draw(4, 6, seed=2), draw(4, 6, seed=3)
    _, rstd = rms_norm(x, weight, EPS)
    dx = rms_norm_input_grad(dy, x, weight, rstd)
    expected = residual + dx
    assert rms_norm_add_input_grad_(residual, dy, x, weight, rstd) is residual
    torch.testing.assert_close(residual, expected)


def samples():
    for shape, dtype in (((3, 40), torch.float32), ((2, 3, 7), torch.bfloat16), ((5,), torch.half)):
        x, dy = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=2)
        weight = draw(shape[-1], seed=1)
        for offset, in_float32 in ((0.0, False), (1.0, False), (0.0, True)):
            yield x, dy, weight.to(dtype), offset, in_float32
        yield x, dy, weight, 1.0, False


def test_the_operators_keep_the_rules_of_torch_library():
    for x, dy, weight, offset, in_float32 in list(samples())[1::7]:
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        torch.library.opcheck(OPS.rms_norm.default, (*leaves, EPS, offset, in_float32))
        _, rstd = rms_norm(x, weight, EPS, offset)
        args = (dy, x, weight, rstd, offset)
        torch.library.opcheck(OPS.rms_norm_input_grad.default, args)
        torch.library.opcheck(OPS.rms_norm_add_input_grad_.default, (dy.clone(), *args))


def test_meta_tensors_give_the_same_shapes_and_types():
    for x, dy, weight, offset, in_float32 in samples():
        y, rstd = OPS.rms_norm(x, weight, EPS, offset, in_float32)
        fakes = OPS.rms_norm(x.to("meta"), weight.to("meta"), EPS, offset, in_float32)
        dx = OPS.rms_norm_input_grad(dy, x, weight, rstd, offset)
        metas = [t.to("meta") for t in (dy, x, weight, rstd)]
        fake_dx = OPS.rms_norm_input_grad(*metas, offset)
        for real, fake in ((y, fakes[0]), (rstd, fakes[1]), (dx, fake_dx)):
            assert (real.shape, real.dtype, real.stride()) == (
                fake.shape,
                fake.dtype,
                fake.stride(),
            )


def test_it_compiles_into_a_whole_graph():
    torch._dynamo.reset()
    x, weight = draw(3, 8).requires_grad_(), draw(8, seed=1)

    def loss(x):
        return rms_norm(x, weight, EPS)[0].square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    (expected,) = torch.autograd.grad(loss(x), x)
    (found,) = torch.autograd.grad(compiled(x), x)
    assert torch.equal(found, expected)


def test_a_second_derivative_is_refused():
    x, weight = draw(3, 8).requires_grad_(), draw(8)
    (dx,) = torch.autograd.grad(rms_norm(x, weight, EPS)[0].square().sum(), x, create_graph=True)
    with pytest.raises(InputError, match="no gradient of its own"):
        dx.sum().backward()


def test_writing_in_place_is_seen_by_autograd():
    residual, x, weight = draw(3, 8), draw(3, 8, seed=1), draw(8, seed=2)
    _, rstd = rms_norm(x, weight, EPS)
    a = draw(3, 8).requires_grad_()
    product = a * residual
    rms_norm_add_input_grad_(residual, x, x, weight, rstd)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
    leaf = draw(3, 8).requires_grad_()
    with pytest.raises(InputError, match="has no gradient"):
        rms_norm_add_input_grad_(leaf * 1, x, x, weight, rstd)
    with torch.no_grad():
        rms_norm_add_input_grad_(leaf, x, x, weight, rstd)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"x": draw(3, 9)}, "weight does not fit"),
        ({"x": torch.tensor(1.0)}, "a single number has no row"),
        ({"x": draw(3, 8).double()}, "do not know this type"),
        ({"weight": draw(8).half()}, "a type of its own"),
        ({"weight": torch.ones(8, device="meta")}, "on two devices"),
        ({"dy": draw(3, 7)}, "dy does not fit"),
        ({"dy": draw(3, 8).half()}, "dy has the wrong type"),
        ({"rstd": draw(3, 1)}, "rstd does not fit"),
        ({"rstd": draw(3).double()}, "rstd has the wrong type"),
        ({"residual": draw(1, 8)}, "residual does not fit"),
        ({"residual": draw(3, 8).half()}, "residual has the wrong type"),
    ],
)
def test_what_does_not_fit_is_refused(changes, what):
    args = {"residual": draw(3, 8), "dy": draw(3, 8), "x": draw(3, 8), "weight": draw(8)}
    args = args | {"rstd": draw(3)}
    rms_norm_add_input_grad_(**args)
    with pytest.raises(InputError, match=what):
        rms_norm_add_input_grad_(**args | changes)
