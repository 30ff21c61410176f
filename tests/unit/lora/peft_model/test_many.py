"""Loading an adapter looks at the same number of modules however many there are already."""

import sys
from collections import Counter

import pytest
from torch import nn

from ince.lora import PeftModel
from ince.lora.layers.adapted import own_parameters


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    return tmp_path


def visits(call):
    """Calls of functions while `call` runs, by where the function is: one for each visit."""
    seen = Counter()

    def note(frame, event, argument):
        if event == "call":
            seen[frame.f_code.co_qualname, frame.f_code.co_filename] += 1
        elif event == "c_call":
            seen[argument.__qualname__, ""] += 1

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return seen


def test_the_work_of_a_load_does_not_grow(llama, folder):
    model = PeftModel.from_pretrained(llama(), folder, "first")
    model.load_adapter(folder, "second")  # what is done once is done by now
    few = visits(lambda: model.load_adapter(folder, "third"))
    for number in range(20):
        model.load_adapter(folder, f"more{number}")
    many = visits(lambda: model.load_adapter(folder, "last"))
    # Whether an adapter may join is asked of each config, and threads wait as they will.
    grown = {
        name: (few[name], count)
        for name, count in many.items()
        if count > few[name] and "ince/lora" in name[1] and "joining" not in name[1]
    }
    assert grown == {}
    of_torch = [
        sum(count for name, count in each.items() if "torch" in name[1]) for each in (few, many)
    ]
    assert of_torch[1] <= of_torch[0]


def test_layers_of_many_adapters_are_modules_as_others(llama, folder, logits):
    model = PeftModel.from_pretrained(llama(), folder, "a").eval()
    model.load_adapter(folder, "b")
    layer = next(m for m in model.modules() if hasattr(m, "lora_A"))
    a, b = layer.lora_A["a"], layer.lora_A["b"]
    fresh = vars(nn.Linear(a.in_features, a.out_features, bias=False))
    assert vars(a).keys() == fresh.keys()
    assert all(type(vars(a)[name]) is type(value) for name, value in fresh.items())
    # No table is shared: a hook of one is not the other's.
    a.register_forward_hook(lambda *_: None)
    assert not b._forward_hooks
    assert isinstance(layer.lora_dropout["b"], nn.Identity)
    assert not any(p.requires_grad for p in own_parameters(b).values())
    memory = [p.untyped_storage().data_ptr() for n, p in model.named_parameters() if "lora_" in n]
    assert len(set(memory)) == len(memory)
    assert all(
        p.untyped_storage().nbytes() == p.nbytes
        for n, p in model.named_parameters()
        if "lora_" in n
    )
