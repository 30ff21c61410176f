"""What this machine offers: processor, accelerators, kernels in use, memory, cache, versions.

For a person who asks why something is slow or missing, and for a report of a fault. A fact
that cannot be had is `Unknown`, with the reason, and costs none of the others. Nothing is
made or changed, and no environment variable or user name is told beyond what paths show.
It is not the run record: that keeps what shaped a result (`ince.record`).
"""

from ince.environment.environment import Backend, Environment, read_environment
from ince.environment.unknown import Unknown

__all__ = ["Backend", "Environment", "Unknown", "read_environment"]
