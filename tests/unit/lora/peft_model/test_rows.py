"""``adapter_names``: for one call, checked before it runs, and undone however it ends."""

import pytest
import torch
from torch import nn

from ince.errors import AdapterError
from ince.lora import LoraLayer, get_peft_model

IDS = torch.tensor([[1, 5, 9, 2, 7], [3, 3, 0, 11, 4]])
NAMES = ["b", "__base__"]


def routings(model):
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    return {layer.state.routing for layer in layers}


def rowwise(model, logits):
    """What a mixed batch must be: each row with its adapter alone."""
    model.set_adapter("b")
    first = logits(model)[0]
    with model.disable_adapter():
        second = logits(model)[1]
    model.set_adapter("default")
    return torch.stack([first, second])


def test_each_row_has_its_adapter_and_the_next_call_the_active_one(model, logits):
    before = logits(model)
    wanted = rowwise(model, logits)
    torch.testing.assert_close(logits(model, adapter_names=NAMES), wanted)
    assert routings(model) == {None}
    assert torch.equal(logits(model), before)


class Broken(nn.Module):
    """Raises in its n-th call."""

    def __init__(self, inner, call=1):
        super().__init__()
        self.inner, self.left = inner, call

    def forward(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("broken")
        return self.inner(*args, **kwargs)


def test_undone_when_a_forward_raises(model, logits):
    before = logits(model)
    base = model.get_base_model()
    head = base.lm_head
    base.lm_head = Broken(head)
    with pytest.raises(RuntimeError, match="broken"):
        logits(model, adapter_names=NAMES)
    assert routings(model) == {None}
    base.lm_head = head
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_undone_when_generating_raises(model, logits, num_beams):
    before = logits(model)
    base = model.get_base_model()
    head = base.lm_head
    base.lm_head = Broken(head, call=3)
    with pytest.raises(RuntimeError, match="broken"):
        model.generate(
            input_ids=IDS,
            adapter_names=NAMES,
            num_beams=num_beams,
            max_new_tokens=6,
            min_new_tokens=6,
        )
    assert routings(model) == {None}
    base.lm_head = head
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    "more",
    [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}],
    ids=["greedy", "beams", "several"],
)
def test_generated_as_row_by_row(model, more):
    settings = {"max_new_tokens": 6, "do_sample": False, "min_new_tokens": 6} | more
    mixed = model.generate(input_ids=IDS, adapter_names=NAMES, **settings)
    k = more.get("num_return_sequences", 1)
    model.set_adapter("b")
    assert torch.equal(mixed[:k], model.generate(input_ids=IDS[:1], **settings))
    with model.disable_adapter():
        assert torch.equal(mixed[k:], model.generate(input_ids=IDS[1:], **settings))


def test_generated_rows_that_are_sampled_several_times(model):
    out = model.generate(
        input_ids=IDS, adapter_names=NAMES, do_sample=True, num_return_sequences=3, max_new_tokens=2
    )
    assert out.shape[0] == 6


def test_a_call_within_a_call_has_its_own_adapters(model, logits):
    """A plain call is not routed, and a routed one goes on routed."""
    plain, wanted = logits(model), rowwise(model, logits)
    base, seen = model.get_base_model(), []

    def look(module, args, output):
        if not seen:
            seen.append(None)
            seen[0] = logits(model)
            seen.append(logits(model, adapter_names=["c", "c"]))

    handle = base.model.embed_tokens.register_forward_hook(look)
    got = logits(model, adapter_names=NAMES)
    handle.remove()
    torch.testing.assert_close(got, wanted)
    assert torch.equal(seen[0], plain)
    assert routings(model) == {None}


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["b"], "one name for each row"),
        (["b"] * 4, "one name for each row"),
        (["b", "bb"], r"no adapter 'bb'"),
        (["b", "defaults"], "did you mean 'default'"),
        (["b", 3], "not a string"),
        ([], "empty"),
        ("bb", "not a list"),
        ([["b"], "b"], "not a string"),
    ],
)
def test_names_are_checked_before_anything_runs(model, names, match):
    calls = []
    model.get_base_model().register_forward_pre_hook(lambda *_: calls.append(1))
    for run in (model, model.generate):
        with pytest.raises(AdapterError, match=match):
            run(input_ids=IDS, adapter_names=names)
        with pytest.raises(AdapterError, match=match):
            run(IDS, adapter_names=names)
    assert calls == []
    assert routings(model) == {None}


def test_rows_of_embeddings_given_as_inputs_count(model):
    embeds = model.get_input_embeddings()(IDS)
    model(inputs_embeds=embeds, adapter_names=NAMES)
    with pytest.raises(AdapterError, match="one name for each row"):
        model(inputs_embeds=embeds, adapter_names=["b"])


def test_what_routing_does_not_go_with(model):
    with model.disable_adapter(), pytest.raises(AdapterError, match="all are disabled"):
        model(input_ids=IDS, adapter_names=NAMES)
    model.merge_adapter()
    with pytest.raises(AdapterError, match="unmerge_adapter"):
        model(input_ids=IDS, adapter_names=NAMES)
    model.unmerge_adapter()
    model(input_ids=IDS, adapter_names=NAMES)


def test_trained_in_one_batch_as_apart(llama, lora):
    grads = []
    for mixed in (True, False):
        torch.manual_seed(1)
        model = get_peft_model(llama(), lora()).train()
        model.add_adapter("b", lora(r=3))
        model.set_requires_grad(["default", "b"])
        if mixed:
            model(input_ids=IDS, adapter_names=["b", "default"]).logits.square().sum().backward()
        else:
            for row, name in enumerate(["b", "default"]):
                model.set_adapter(name)
                model(input_ids=IDS[row : row + 1]).logits.square().sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert len(grads[0]) == 16
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-4, atol=1e-6)


def test_with_layers_that_are_computed_again_it_is_refused_in_training(model, logits):
    model.activation_checkpointing_enable()
    wanted = rowwise(model, logits)
    torch.testing.assert_close(logits(model, adapter_names=NAMES), wanted)
    model.train()
    with pytest.raises(AdapterError, match="gradient checkpointing"):
        model(input_ids=IDS, adapter_names=NAMES)
    torch.testing.assert_close(logits(model, adapter_names=NAMES), wanted)
