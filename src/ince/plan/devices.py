"""Devices by name: memory and peak speed as their makers publish them.

A peak is not what a run reaches. How much of it is reached is an assumption, `ASSUMED_SHARE`, and
is called one wherever a figure rests on it; this machine's own device is measured instead
(`ince.plan.calibration`).
"""

from dataclasses import dataclass
from types import MappingProxyType

from ince.errors import InputError, did_you_mean

__all__ = ["ASSUMED_SHARE", "DEVICES", "Device", "find_device"]

ASSUMED_SHARE = 0.4
"""Of the peak, reached by a whole training step: an assumption."""


@dataclass(frozen=True)
class Device:
    """An accelerator.

    Attributes:
        name: as it is shown.
        memory_bytes: that it has; of a card of 80 GB, 80 · 2³⁰ less what the driver keeps.
        peak_flops: of dense products in bfloat16, summed in float32, in a second.
        source: of the peak.
    """

    name: str
    memory_bytes: int
    peak_flops: float
    source: str


def _device(name: str, gib: float, teraflops: float, source: str) -> Device:
    return Device(name, int(gib * 2**30), teraflops * 1e12, source)


_ALL = (
    _device("B200", 180, 2250, "NVIDIA HGX B200 data sheet, dense"),
    _device("H200", 141, 989, "NVIDIA H200 data sheet, dense"),
    _device("H100", 80, 989, "NVIDIA H100 SXM data sheet, dense"),
    _device("H100-PCIe", 80, 756, "NVIDIA H100 PCIe data sheet, dense"),
    _device("A100-80G", 80, 312, "NVIDIA A100 data sheet"),
    _device("A100-40G", 40, 312, "NVIDIA A100 data sheet"),
    _device("L40S", 48, 362, "NVIDIA L40S data sheet, dense"),
    _device("A6000", 48, 154.8, "NVIDIA Ampere GA102 white paper, dense"),
    _device("RTX-5090", 32, 209.5, "NVIDIA RTX Blackwell white paper, dense"),
    _device("RTX-4090", 24, 165.2, "NVIDIA Ada white paper, dense"),
    _device("RTX-3090", 24, 71, "NVIDIA Ampere GA102 white paper, dense"),
    _device("L4", 24, 121, "NVIDIA L4 data sheet, dense"),
)

DEVICES = MappingProxyType({device.name: device for device in _ALL})
"""By name, the largest first."""


def find_device(name: str) -> Device:
    """The device of this name, in any case and with or without dashes.

    Raises:
        InputError: there is none.
    """

    def key(text: str) -> str:
        return text.lower().replace("-", "").replace(" ", "").replace("_", "")

    for device in DEVICES.values():
        if key(name) in (key(device.name), key(device.name).removeprefix("rtx")):
            return device
    raise InputError(
        "no device of this name is known",
        got=name,
        expected=", ".join(DEVICES),
        do=did_you_mean(name, DEVICES),
    )
