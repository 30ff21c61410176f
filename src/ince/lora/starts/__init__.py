"""What adapters begin with: random, from the weight, from its inputs, or from its gradient.

Pure functions of matrices; none changes the base (see `ince.lora.starts.start`).
"""
