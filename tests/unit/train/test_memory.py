"""What is held, what is too much, and what an allocator says when it is."""

import types

import pytest
import torch

from ince.heap import held_bytes
from ince.train.memory import OverLimitError, is_out_of_memory, memory_of

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (OverLimitError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
)  # fmt: skip
def test_who_refuses_memory_is_recognized(error, expected):
    assert is_out_of_memory(error) is expected


def test_a_real_refusal_is_recognized():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_the_host_measures_what_this_process_holds():
    memory = memory_of(CPU, None)
    assert memory.limit_bytes is None
    with memory.peak() as peak:
        block = torch.ones(25_000_000)
        del block
    memory.release()
    assert peak.num_bytes > memory.held() + 80_000_000


def test_a_forward_is_ended_at_the_limit_and_the_model_is_as_it_was(tiny_llama):
    model = tiny_llama(vocab_size=100)
    ids = torch.arange(16)[None]
    before = [len(module._forward_pre_hooks) for module in model.modules()]
    with memory_of(CPU, held_bytes() * 2).stop_at_limit(model):
        model(input_ids=ids)
    with memory_of(CPU, 1).stop_at_limit(model), pytest.raises(OverLimitError):
        model(input_ids=ids)
    with memory_of(CPU, None).stop_at_limit(model):
        model(input_ids=ids)
    assert [len(module._forward_pre_hooks) for module in model.modules()] == before


@pytest.fixture
def gpu(monkeypatch):
    """torch.cuda as far as it is asked: 10 GiB, of which 6 are free and 1 is torch's own."""
    said = types.SimpleNamespace(fraction=None, emptied=0, peak=0)
    gib = 1 << 30
    fakes = {
        "mem_get_info": lambda _device: (6 * gib, 10 * gib),
        "memory_reserved": lambda _device: gib,
        "memory_allocated": lambda _device: gib // 2,
        "max_memory_allocated": lambda _device: said.peak,
        "reset_peak_memory_stats": lambda _device: setattr(said, "peak", 0),
        "empty_cache": lambda: setattr(said, "emptied", said.emptied + 1),
        "set_per_process_memory_fraction": lambda f, _device: setattr(said, "fraction", f),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return said


def test_on_a_gpu_the_limit_is_what_is_free_and_what_is_held(gpu):
    memory = memory_of(torch.device("cuda:0"), None)
    assert (memory.limit_bytes, memory.limit_name) == (7 << 30, "free on the device")
    assert memory.held() == 1 << 29
    with memory.peak() as peak:
        gpu.peak = 3 << 30
    assert peak.num_bytes == 3 << 30
    memory.release()
    assert gpu.emptied == 1
    assert gpu.fraction is None


def test_on_a_gpu_a_budget_is_kept_by_the_allocator(gpu):
    memory = memory_of(torch.device("cuda:0"), 2 << 30)
    assert (memory.limit_bytes, memory.limit_name) == (2 << 30, "train.memory")
    assert gpu.fraction == pytest.approx(0.2)
    assert memory_of(torch.device("cuda:0"), 9 << 30).limit_bytes == 7 << 30
