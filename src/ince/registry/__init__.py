"""Adapters by content digest, with names, tenants, keys, lineage and an audit log.

What is served, and who may use it, outlives the server: it is in one folder, which several
processes may change at once and which a crash leaves whole. Serving reads it; nothing here
knows a model.
"""

from ince.registry.adapters import AdapterEntry, Holding
from ince.registry.aliases import Alias, NameVersion
from ince.registry.audit import AuditRecord
from ince.registry.collection import Collected, Verified
from ince.registry.keys import Key, key_id
from ince.registry.names import SHARED, check_name, is_digest
from ince.registry.registry import Registry
from ince.registry.tenants import Tenant, Tenants
from ince.registry.usage import Usage

__all__ = [
    "SHARED",
    "AdapterEntry",
    "Alias",
    "AuditRecord",
    "Collected",
    "Holding",
    "Key",
    "NameVersion",
    "Registry",
    "Tenant",
    "Tenants",
    "Usage",
    "Verified",
    "check_name",
    "is_digest",
    "key_id",
]
