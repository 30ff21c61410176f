"""OpenAI's and vLLM's routes over the engine, for tenants with keys.

`create_app` makes the application and `run_server` runs it. Everything here needs the packages of
``ince[serve]``, so nothing outside imports this room before it is used.
"""

from ince.serve.http.app import create_app
from ince.serve.http.directory import AdapterShelf, FolderDirectory, ModelDirectory, NamedAdapter
from ince.serve.http.settings import HttpSettings
from ince.serve.http.tenants import Caller, Tenants, Usage

__all__ = [
    "AdapterShelf",
    "Caller",
    "FolderDirectory",
    "HttpSettings",
    "ModelDirectory",
    "NamedAdapter",
    "Tenants",
    "Usage",
    "create_app",
]
