"""Where a config puts an adapter in a model; putting it there; its tensors in and out."""
