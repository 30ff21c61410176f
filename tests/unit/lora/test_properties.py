"""What holds for any model and any adapters: rows, merges, a base that comes back to the bit."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ince.lora import LoraConfig, get_peft_model
from ince.quant import NF4Config, quantize_model

# float32 and 16 bits: how far two orders of the same sums may lie apart.
CLOSE = {torch.float32: 2e-5, torch.bfloat16: 6e-2}


class Net(nn.Module):
    """Tokens to scores, through every kind of layer that has a row for each token."""

    def __init__(self, width, inner, bias):
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.up = nn.Linear(width, inner, bias=bias)
        self.down = nn.Linear(inner, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 7, bias=bias)

    def forward(self, ids):
        x = self.embed(ids)
        x = self.norm(x + self.down(torch.tanh(self.up(x))))
        return self.head(x)


KINDS = [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}]
TARGETS = [["up", "down"], ["up", "head"], ["embed", "down"], ["embed", "up", "down", "head"]]


@st.composite
def configs(draw):
    kind = draw(st.sampled_from(KINDS))
    targets = draw(st.sampled_from(TARGETS))
    if kind.get("lora_bias"):
        targets = [name for name in targets if name != "embed"]
    return LoraConfig(
        r=draw(st.integers(1, 4)),
        lora_alpha=draw(st.integers(1, 8)),
        target_modules=targets,
        init_lora_weights=False,
        **kind,
    )


@st.composite
def models(draw, *, num_adapters=3):
    torch.manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16]))
    width, inner = draw(st.integers(4, 17)), draw(st.integers(4, 23))
    base = Net(width, inner, draw(st.booleans())).to(dtype).eval()
    if draw(st.booleans()):
        quantize_model(base, NF4Config(compute_dtype=str(dtype).removeprefix("torch.")))
    model = get_peft_model(base, draw(configs()), "a0").eval()
    for number in range(1, num_adapters):
        model.add_adapter(f"a{number}", draw(configs()))
    return model


def tensors_of(model):
    return {n: t.clone() for n, t in model.state_dict().items() if "lora" not in n}


def close(got, wanted):
    scale = max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(got, wanted, rtol=0, atol=CLOSE[wanted.dtype] * scale)


@settings(max_examples=40)
@given(models(), st.data())
def test_a_mixed_batch_is_row_by_row(model, data):
    names = data.draw(
        st.lists(st.sampled_from(["a0", "a1", "a2", "__base__"]), min_size=1, max_size=9)
    )
    ids = torch.randint(11, (len(names), data.draw(st.integers(1, 5))))
    with torch.no_grad():
        mixed = model(ids, adapter_names=names)
        again = model(ids, adapter_names=names)
        for row, name in enumerate(names):
            if name == "__base__":
                with model.disable_adapter():
                    alone = model(ids[row : row + 1])
            else:
                model.set_adapter(name)
                alone = model(ids[row : row + 1])
            close(mixed[row : row + 1], alone)
    assert torch.equal(mixed, again)


@settings(max_examples=40)
@given(models(num_adapters=2), st.booleans())
def test_merging_is_the_adapter_and_unmerging_the_base(model, both):
    model.set_adapter(["a0", "a1"] if both else "a0")
    ids = torch.randint(11, (3, 4))
    before = tensors_of(model)
    with torch.no_grad():
        adapted = model(ids)
        with model.disable_adapter():
            base = model(ids)
        wide = copy.deepcopy(model).merge_and_unload(dtype=torch.float32)
        if adapted.dtype == torch.float32:
            close(wide(ids), adapted)
        model.merge_adapter()
        close(model(ids), adapted)
        with model.disable_adapter():
            assert torch.equal(model(ids), base)
        model.unmerge_adapter()
        assert torch.equal(model(ids), adapted)
        plain = model.unload()
        assert torch.equal(plain(ids), base)
    after = plain.state_dict()
    wanted = {
        name.replace("base_model.model.", "").replace("base_layer.", ""): tensor
        for name, tensor in before.items()
    }
    assert wanted.keys() == after.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, wanted[name])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: next(iter(kind), "lora"))
def test_deleting_the_last_adapter_leaves_the_base(kind):
    torch.manual_seed(0)
    base = Net(8, 12, True).eval()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    modules = [type(module) for module in base.modules()]
    model = get_peft_model(base, LoraConfig(target_modules=["up", "head"], **kind))
    model.delete_adapter("default")
    assert [type(module) for module in base.modules()] == modules
    for name, tensor in base.state_dict().items():
        assert torch.equal(tensor, before[name])
