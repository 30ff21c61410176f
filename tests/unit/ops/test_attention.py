import pytest
import torch

from ince.errors import InputError
from ince.ops import attention_tiles, packed_attention, packed_attention_backward
from ince.ops.backends import reference_only

OPS = torch.ops.ince
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def arguments(dtype=torch.float32, heads=4, key_heads=2, length=21, width=8):
    """q, k, v, mask."""
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(2, length, count, width).to(dtype).transpose(1, 2)
        for count in (heads, key_heads, key_heads)
    )
    mask = torch.ones(2, 1, length, length, dtype=torch.bool).tril()
    mask[0, :, 10:, :10] = False
    mask[1, :, 5] = False
    return q, k, v, mask


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_go_to_queries_keys_and_values(dtype):
    q, k, v, mask = arguments(dtype)
    q, k, v = (t.requires_grad_() for t in (q, k, v))
    out, lse = packed_attention(q, k, v, mask, 0.3)
    assert not lse.requires_grad
    grad = torch.randn(out.shape).to(dtype)
    found = (out, *torch.autograd.grad(out, (q, k, v), grad))
    with reference_only():
        out, lse = packed_attention(q, k, v, mask, 0.3)
        expected = (out, *packed_attention_backward(grad, q, k, v, out, lse, mask, 0.3))
    close = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, rtol=close, atol=close)


def test_the_result_lies_as_the_next_layer_wants_it():
    q, k, v, mask = arguments()
    with reference_only():
        by_reference = packed_attention(q, k, v, mask, 0.3)[0]
    for out in (packed_attention(q, k, v, mask, 0.3)[0], by_reference):
        flat = out.transpose(1, 2).reshape(2, 21, 32)
        assert flat.data_ptr() == out.data_ptr()


def test_tiles_may_be_made_once():
    q, k, v, mask = arguments()
    tiles = attention_tiles(mask)
    assert tiles.tolist() == [[[2, 0], [2, 2]], [[2, 0], [1, 2]]]
    found = packed_attention(q, k, v, mask, 0.3, tiles=tiles)
    assert all(map(torch.equal, found, packed_attention(q, k, v, mask, 0.3)))


def test_there_is_no_second_derivative():
    q, k, v, mask = arguments()
    q.requires_grad_()
    out, _ = packed_attention(q, k, v, mask, 0.3)
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(InputError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("asks", [False, True])
def test_the_operators_keep_the_rules_of_their_kind(asks):
    q, k, v, mask = arguments(torch.bfloat16, length=7)
    q, k, v = (t.requires_grad_(asks) for t in (q, k, v))
    tiles = attention_tiles(mask)
    out, lse = packed_attention(q, k, v, mask, 0.3)
    given = [t.detach() for t in (torch.ones_like(out), q, k, v, out, lse)]
    for operator, args in (
        (OPS.attention_tiles, (mask,)),
        (OPS.packed_attention, (q, k, v, mask, tiles, 0.3)),
        (OPS.packed_attention_backward, (*given, mask, tiles, 0.3)),
    ):
        done = torch.library.opcheck(operator.default, args)
        assert set(done.values()) == {"SUCCESS"}


def test_it_compiles_into_a_whole_graph():
    q, k, v, mask = arguments()
    compiled = torch.compile(packed_attention, backend="eager", fullgraph=True)
    found = compiled(q, k, v, mask, 0.3)
    assert all(map(torch.equal, found, packed_attention(q, k, v, mask, 0.3)))


def test_meta_tensors_give_the_same_shapes_types_and_strides():
    q, k, v, mask = arguments(torch.bfloat16)
    real = packed_attention(q, k, v, mask, 0.3)
    real += packed_attention_backward(q, q, k, v, *real, mask, 0.3)
    q, k, v, mask = (t.to("meta") for t in (q, k, v, mask))
    fake = packed_attention(q, k, v, mask, 0.3)
    fake += packed_attention_backward(q, q, k, v, *fake, mask, 0.3)
    for one, other in zip(real, fake, strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


BROKEN = {
    "q": [
        lambda a: a | {"q": a["q"].double()},
        lambda a: a | {"q": a["q"][0]},
        lambda a: a | {"q": a["q"][..., :0]},
        lambda a: a | {"q": a["q"].long()},
    ],
    "k": [
        lambda a: a | {"k": a["k"].bfloat16()},
        lambda a: a | {"k": a["k"][..., :4]},
        lambda a: a | {"k": a["k"][:1]},
        lambda a: a | {"k": a["k"][:, :0]},
        lambda a: a | {"k": a["q"][:, :3], "v": a["q"][:, :3]},
    ],
    "v": [lambda a: a | {"v": a["v"][:, :, :-1]}, lambda a: a | {"v": a["v"].half()}],
    "mask": [
        lambda a: a | {"mask": a["mask"].float()},
        lambda a: a | {"mask": a["mask"][:, 0]},
        lambda a: a | {"mask": a["mask"].expand(2, 4, 21, 21)},
        lambda a: a | {"mask": a["mask"][:, :, :20]},
        lambda a: a | {"mask": a["mask"][:1]},
    ],
    "tiles": [
        lambda a: a | {"tiles": attention_tiles(a["mask"])[:, :1]},
        lambda a: a | {"tiles": attention_tiles(a["mask"]).int()},
        lambda a: a | {"tiles": attention_tiles(a["mask"]).to("meta")},
    ],
}


@pytest.mark.parametrize(
    "name, change", [(name, change) for name, every in BROKEN.items() for change in every]
)
def test_what_does_not_fit_is_refused(name, change):
    args = dict(zip(("q", "k", "v", "mask"), arguments(), strict=True))
    with pytest.raises(InputError) as caught:
        packed_attention(**change(args), scale=0.3)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["grad_out", "out", "lse"])
def test_what_does_not_fit_is_refused_going_back(name):
    args = dict(zip(("q", "k", "v", "mask"), arguments(), strict=True))
    out, lse = packed_attention(**args, scale=0.3)
    args |= {"out": out, "lse": lse, "grad_out": out}
    for change in (lambda t: t[:1], lambda t: t.double()):
        with pytest.raises(InputError, match=name):
            packed_attention_backward(**args | {name: change(args[name])}, scale=0.3)
