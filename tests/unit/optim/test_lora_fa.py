import math

import pytest
import torch
from torch import nn

from ince.errors import AdapterError, ConfigError
from ince.lora import AdaLoraConfig, LoraConfig, VeraConfig, get_peft_model, inject
from ince.optim import (
    LoraFAOptimizer,
    create_lorafa_optimizer,
    load_optimizer_state,
    optimizer_state,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 4, 3)
        self.words = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.conv(x).mean((-1, -2)))


def adapted(**values):
    model = Net()
    settings = {"r": 2, "target_modules": ["head", "conv"], "init_lora_weights": False}
    inject(model, LoraConfig(**(settings | values)))
    return model


def make(model, **values):
    return create_lorafa_optimizer(model, **({"r": 2, "lora_alpha": 8, "lr": 1e-2} | values))


def loss_of(model):
    generator = torch.Generator().manual_seed(0)
    return model(torch.randn(3, 2, 5, 5, generator=generator)).square().mean()


def descend(model, optimizer, num_steps):
    for _ in range(num_steps):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_is_frozen_and_b_learns():
    model = adapted()
    optimizer = make(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    start = loss_of(model).item()
    descend(model, optimizer, 30)
    assert loss_of(model).item() < 0.5 * start
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"head.lora_B.default.weight", "conv.lora_B.default.weight"}


def test_the_step_of_b_moves_w_as_its_full_gradient_would():
    """With as many ranks as inputs, s · ĝ_B A is the gradient of W itself, over s for s."""
    torch.manual_seed(1)
    a = torch.randn(4, 4)
    b = nn.Parameter(torch.zeros(3, 4))
    g_w = torch.randn(3, 4)
    s = 1.7
    b.grad = s * g_w @ a.t()
    optimizer = LoraFAOptimizer([b], {b: (a, s)}, lr=0.1)
    torch.testing.assert_close(s * optimizer._corrected(b) @ a, g_w, rtol=1e-4, atol=1e-4)


def test_what_is_no_b_takes_the_step_of_adamw():
    a, b = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = LoraFAOptimizer([a], {}, lr=0.1, eps=0.0)
    other = torch.optim.Adam([b], lr=0.1, eps=0.0)
    for scale in (1.0, -3.0, 0.5):
        for parameter, each in ((a, optimizer), (b, other)):
            parameter.grad = scale * torch.arange(1.0, 4.0)
            each.step()
    torch.testing.assert_close(a, b)


def test_its_state_goes_on_to_the_bit():
    straight, stopped = adapted(), adapted()
    descend(straight, make(straight), 5)
    optimizer = make(stopped)
    descend(stopped, optimizer, 3)
    named = {name: p for name, p in stopped.named_parameters() if p.requires_grad}
    state = {key: value.clone() for key, value in optimizer_state(optimizer, named).items()}
    resumed = make(stopped)
    load_optimizer_state(resumed, named, state)
    descend(stopped, resumed, 2)
    for name, parameter in straight.named_parameters():
        assert torch.equal(parameter, stopped.get_parameter(name))


def test_a_state_dict_of_torch_goes_on_too():
    model = adapted()
    optimizer = make(model)
    descend(model, optimizer, 2)
    again = make(model)
    again.load_state_dict(optimizer.state_dict())
    for parameter in (p for p in model.parameters() if p.requires_grad):
        assert torch.equal(again.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])


def test_a_closure_is_called_with_gradients():
    model = adapted()
    optimizer = make(model)

    def closure():
        loss = loss_of(model)
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == pytest.approx(loss_of(adapted()).item())


def test_several_adapters_each_know_their_a():
    model = get_peft_model(Net(), LoraConfig(r=2, target_modules=["head"], init_lora_weights=False))
    model.add_adapter("other", LoraConfig(r=2, target_modules=["head"], init_lora_weights=False))
    model.set_adapter(["default", "other"])
    optimizer = make(model)
    head = model.get_base_model().head
    for name in ("default", "other"):
        a, b = head.factor_parameters(name)
        assert optimizer._frozen[b][0] is a
        assert not a.requires_grad


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (LoraConfig(r=2, target_modules=["words"]), "linear and convolution"),
        (VeraConfig(r=2, target_modules=["head"]), "vera_lambda_b"),
        (AdaLoraConfig(init_r=2, target_r=1, total_step=5, target_modules=["head"]), "lora_E"),
    ],
)
def test_adapters_without_a_frozen_a(config, match):
    model = Net()
    inject(model, config)
    with pytest.raises(AdapterError, match=match):
        make(model)
    assert all(p.requires_grad for name, p in model.named_parameters() if "lora_A" in name)


@pytest.mark.parametrize(
    "values", [{"r": 3}, {"lora_alpha": 16}, {"use_rslora": True}, {"r": 3, "lora_alpha": 1}]
)
def test_arguments_of_another_adapter(values):
    model = get_peft_model(Net(), LoraConfig(r=2, target_modules=["head"]))
    with pytest.raises(ConfigError) as caught:
        make(model, **values)
    assert [problem.key for problem in caught.value.problems] == list(values)


@pytest.mark.parametrize(
    "values", [{"lr": -1}, {"lr": math.nan}, {"weight_decay": -1}, {"weight_decay": math.inf}]
)
def test_numbers_that_cannot_be(values):
    with pytest.raises(ConfigError, match="LoRA-FA cannot train"):
        make(adapted(), **values)


def test_a_model_without_a_trained_adapter():
    with pytest.raises(AdapterError, match="no adapter is trained"):
        make(Net())
    model = adapted()
    model.requires_grad_(False)
    with pytest.raises(AdapterError, match="no adapter is trained"):
        make(model)


def test_a_step_keeps_no_input_of_a_layer():
    base = nn.Sequential(*(nn.Linear(256, 256) for _ in range(3))).requires_grad_(False)
    inject(base, LoraConfig(r=2, target_modules=["0", "1", "2"], lora_alpha=8))
    x = torch.randn(512, 256)

    def kept():
        saved = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t: (saved.append(t), t)[1], lambda t: t
        )
        with hooks:
            base(x)
        return max(t.numel() for t in saved)

    assert kept() >= 512 * 256
    make(base)
    assert kept() < 512 * 256 / 50
