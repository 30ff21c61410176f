"""What `optim.py` and `optim_gpu.py` are made of."""
