"""The plan of a run, before it: what it holds in memory, when, how long it takes, what it costs.

Everything is computed from a model's shape (`Shape`) and from how it is to be trained; no weight is
read, nothing is loaded, and all of it but the measured rates of this device works without torch.
Whether a plan was true is asked after each run (`ince.plan.truth`).
"""

from ince.plan.calibration import Calibration, RunFact, this_device
from ince.plan.devices import ASSUMED_SHARE, DEVICES, Device, find_device
from ince.plan.duration import Rate, TimePlan, plan_time, rate_of
from ince.plan.known_shapes import KNOWN_SHAPES, find_known
from ince.plan.memory import COMPONENTS, MemoryPlan, Moment, Overheads, fill_pages, plan_memory
from ince.plan.setup import METHODS, OPTIMIZERS, Method, Setup
from ince.plan.shape import Matrix, ParameterCounts, Shape
from ince.plan.shape_source import read_shape

__all__ = [
    "ASSUMED_SHARE",
    "COMPONENTS",
    "DEVICES",
    "KNOWN_SHAPES",
    "METHODS",
    "OPTIMIZERS",
    "Calibration",
    "Device",
    "Matrix",
    "MemoryPlan",
    "Method",
    "Moment",
    "Overheads",
    "ParameterCounts",
    "Rate",
    "RunFact",
    "Setup",
    "Shape",
    "TimePlan",
    "fill_pages",
    "find_device",
    "find_known",
    "plan_memory",
    "plan_time",
    "rate_of",
    "read_shape",
    "this_device",
]
