"""Adapted layers: how each kind multiplies, what it computes with adapters, what it merges to."""
