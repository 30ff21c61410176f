"""GGUF, the file format of llama.cpp: read tensor by tensor, every length checked first."""

from ince.formats.gguf.reader import GGUFEntry, GGUFFile

__all__ = ["GGUFEntry", "GGUFFile"]
