import math

import torch

from ince.lora.layers.projections import Projections


def test_the_numbers_depend_on_the_seed_alone():
    torch.manual_seed(1)
    one = Projections(4, 9, 7, seed=5, is_saved=True).own()
    torch.manual_seed(2)
    after = torch.rand(())
    torch.manual_seed(2)
    two = Projections(4, 9, 7, seed=5, is_saved=True).own()
    assert torch.equal(torch.rand(()), after)  # and they use up none of the program's
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    other = Projections(4, 9, 7, seed=6, is_saved=True).own()
    assert not torch.equal(one[0], other[0])


def test_they_are_uniform_by_their_fan_in():
    a, b = Projections(64, 50, 200, seed=0, is_saved=True).own()
    assert a.shape == (64, 50)
    assert b.shape == (200, 64)
    for matrix, fan_in in ((a, 50), (b, 64)):
        bound = math.sqrt(6 / fan_in)
        assert matrix.abs().max() <= bound
        assert math.isclose(matrix.std(), bound / math.sqrt(3), rel_tol=0.05)


def test_a_file_has_them_only_when_they_are_saved():
    saved = Projections(2, 3, 4, seed=0, is_saved=True)
    assert saved.shapes() == {"base_model.vera_A": (2, 3), "base_model.vera_B": (4, 2)}
    assert {name: tuple(t.shape) for name, t in saved.tensors().items()} == saved.shapes()
    drawn = Projections(2, 3, 4, seed=0, is_saved=False)
    assert drawn.shapes() == drawn.tensors() == {}


def test_what_is_written_to_them_reaches_other_devices_too():
    projections = Projections(2, 3, 4, seed=0, is_saved=True)
    there = torch.device("meta")
    first = projections.on(there)[0]
    assert first.device == there
    assert projections.on(there)[0] is first
    projections.tensors()["base_model.vera_A"].zero_()
    assert projections.on(there)[0] is not first
    assert not projections.on(torch.device("cpu"))[0].any()


def test_what_was_drawn_in_inference_mode_trains():
    projections = Projections(2, 3, 4, seed=0, is_saved=True)
    with torch.inference_mode():
        projections.on(torch.device("cpu"))
    weight = torch.ones(2, requires_grad=True)
    (weight @ projections.own()[0]).sum().backward()
    assert weight.grad is not None
