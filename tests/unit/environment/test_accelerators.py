import types
import warnings

import pytest
import torch

from ince.environment import Unknown
from ince.environment import accelerators as module
from ince.environment.accelerators import read_accelerators

GIB = 2**30


@pytest.fixture
def cuda(monkeypatch, tmp_path):
    """A torch for CUDA on a machine with one GPU."""
    properties = types.SimpleNamespace(
        name="NVIDIA H200", total_memory=140 * GIB, major=9, minor=0, gcnArchName="gfx942"
    )
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _number: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _number: (130 * GIB, 140 * GIB))
    monkeypatch.setattr(module, "_NVIDIA_DRIVER", tmp_path / "driver")
    return monkeypatch


def refuse(*_arguments):
    raise RuntimeError("CUDA error: all devices are busy")


def test_a_gpu(cuda):
    found = read_accelerators()
    (gpu,) = found.devices
    assert (gpu.device, gpu.name, gpu.compute_capability) == ("cuda:0", "NVIDIA H200", "9.0")
    assert (gpu.free_bytes, gpu.total_bytes) == (130 * GIB, 140 * GIB)
    assert (found.runtime, found.none_because) == ("CUDA 12.8", None)


def test_a_gpu_that_another_program_holds(cuda):
    cuda.setattr(torch.cuda, "mem_get_info", refuse)
    (gpu,) = read_accelerators().devices
    assert gpu.name == "NVIDIA H200"
    assert "devices are busy" in gpu.free_bytes.reason


def test_a_gpu_that_tells_nothing(cuda):
    cuda.setattr(torch.cuda, "get_device_properties", refuse)
    (gpu,) = read_accelerators().devices
    assert gpu.device == "cuda:0"
    assert isinstance(gpu.name, Unknown)


def test_a_gpu_of_amd(cuda):
    cuda.setattr(torch.version, "cuda", None)
    cuda.setattr(torch.version, "hip", "6.4")
    found = read_accelerators()
    assert found.devices[0].compute_capability == "gfx942"
    assert found.runtime == "ROCm 6.4"


def test_an_old_driver_is_named_by_torch(cuda):
    def old():
        warnings.warn("the NVIDIA driver on your system is too old", stacklevel=1)
        return False

    cuda.setattr(torch.cuda, "is_available", old)
    found = read_accelerators()
    assert found.devices == ()
    assert found.none_because == "the NVIDIA driver on your system is too old"


@pytest.mark.parametrize(
    "has_driver, words", [(True, "driver shows torch no GPU"), (False, "no GPU, or no driver")]
)
def test_no_gpu_for_a_torch_that_could(cuda, tmp_path, has_driver, words):
    cuda.setattr(torch.cuda, "is_available", lambda: False)
    if has_driver:
        (tmp_path / "driver").write_text("")
    assert words in read_accelerators().none_because


def test_a_torch_without_cuda_where_there_is_a_driver(cuda, tmp_path):
    cuda.setattr(torch.version, "cuda", None)
    (tmp_path / "driver").write_text("")
    found = read_accelerators()
    assert found.devices == ()
    assert found.runtime is None
    assert "install torch for CUDA" in found.none_because


def test_a_torch_that_fails(cuda):
    cuda.setattr(torch.cuda, "is_available", refuse)
    found = read_accelerators()
    assert "devices are busy" in found.devices.reason
    assert found.runtime == "CUDA 12.8"


def test_a_mac(cuda):
    cuda.setattr(torch.version, "cuda", None)
    cuda.setattr(torch.backends.mps, "is_built", lambda: True)
    cuda.setattr(torch.backends.mps, "is_available", lambda: True)
    cuda.setattr(torch.mps, "recommended_max_memory", lambda: 10 * GIB)
    cuda.setattr(torch.mps, "driver_allocated_memory", lambda: 3 * GIB)
    found = read_accelerators()
    (gpu,) = found.devices
    assert (gpu.device, gpu.free_bytes, gpu.total_bytes) == ("mps", 7 * GIB, 10 * GIB)
    assert gpu.compute_capability is None
    cuda.setattr(torch.backends.mps, "is_available", lambda: False)
    assert "no Metal device" in read_accelerators().none_because
