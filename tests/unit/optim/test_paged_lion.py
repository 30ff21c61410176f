"""Lion steps by signs, in pages as without."""

import torch
from torch import nn

from ince.optim import Lion, PagedAdamW, PagedLion, PagesConfig


def test_lion_is_its_formula_on_every_tier(some_parameters, train):
    expected, paged, plain = some_parameters(), some_parameters(), some_parameters()
    pages = PagesConfig(page_bytes=4096, memory=0)
    train(PagedLion(paged, lr=1e-2, weight_decay=0.1, pages=pages), paged, 5)
    train(Lion(plain, lr=1e-2, weight_decay=0.1), plain, 5)
    momentum = [torch.zeros_like(p) for p in expected]
    for step in range(5):
        drawn = torch.Generator().manual_seed(step)
        for p, m in zip(expected, momentum, strict=True):
            g = torch.randn(p.shape, generator=drawn)
            update = (0.9 * m + 0.1 * g).sign()
            p.data = p.data * (1 - 1e-2 * 0.1) - 1e-2 * update
            m.copy_(0.99 * m + 0.01 * g)
    for a, b, c in zip(expected, paged, plain, strict=True):
        assert torch.equal(b, c)
        torch.testing.assert_close(a, b)


def test_lion_does_not_see_the_size_of_gradients(some_parameters, train):
    small, large = some_parameters(), some_parameters()
    train(Lion(small, lr=1e-2), small, 1)
    optimizer = Lion(large, lr=1e-2)
    drawn = torch.Generator().manual_seed(0)
    for p in large:
        p.grad = 1024 * torch.randn(p.shape, generator=drawn)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(small, large, strict=True))


def test_both_find_a_minimum_from_a_file():
    for cls, lr in ((PagedAdamW, 0.05), (PagedLion, 0.05)):
        target = torch.randn(1500, generator=torch.Generator().manual_seed(3))
        weight = nn.Parameter(torch.zeros(1500))
        pages = PagesConfig(page_bytes=4096, memory=0)
        optimizer = cls([weight], lr=lr, weight_decay=0.0, pages=pages)
        for step in range(200):
            optimizer.param_groups[0]["lr"] = lr * (1 - step / 200)
            optimizer.zero_grad()
            ((weight - target) ** 2).sum().backward()
            optimizer.step()
        assert ((weight - target) ** 2).mean() < 0.01 * (target**2).mean()
