"""Bytes on disk: the formats that weights come and go in, checked as they are read."""

from ince.formats.adapter import adapter_digest, read_adapter, write_adapter

__all__ = ["adapter_digest", "read_adapter", "write_adapter"]
