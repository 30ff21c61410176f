"""Where a run's numbers go besides its own log: TensorBoard, Weights & Biases, MLflow, trackio.

None of them is needed, installed or imported unless a recipe names it in `train.report_to`.
"""

from ince.train.sinks.installed import SINK_NAMES, SinkName, require_installed
from ince.train.sinks.reporting import reporting
from ince.train.sinks.sink import Sink

__all__ = ["SINK_NAMES", "Sink", "SinkName", "reporting", "require_installed"]
