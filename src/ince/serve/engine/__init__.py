"""Runs requests: which go next, what each step computes, and where keys and values are.

Continuous batching over transformers' own model classes, which are not changed: a step's tokens
stand one to a row, attention reads and writes blocks of a pool, and rows of different adapters
share a step.
"""
