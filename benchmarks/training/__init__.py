"""What the training benchmarks share: chats, the bound of a step, turns, and one runner for each
library. `train_cpu.py`, `train_gpu.py` and `train_profile.py` beside this folder run them."""
