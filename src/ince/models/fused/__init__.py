"""A transformers model computed in larger pieces while it trains, module by module.

`fused` puts forwards of ours on the modules that they fit, and takes them off again; no source is
patched, no module replaced, and no parameter changes its name. What a module is, is asked by
computing: a forward of ours stays only where it gives what the module's own gives.
"""

from ince.models.fused.attach import FusedReport, fused

__all__ = ["FusedReport", "fused"]
