"""The tables of a registry, and which version of them this is.

    adapters     what lies in content/, by digest; a row and its folder come and go together
    holdings     which tenant put it, and from which run; "" is what all tenants may share
    versions     what each name ever stood for, in order; `previous` is what a rollback goes to
    aliases      which of its versions a name stands for now
    tenants, permissions, keys, usage
    audit        every change, appended only; each row carries the digest of all before it

A later schema raises `SCHEMA_VERSION`; an older ince then refuses the file by name.
"""

__all__ = ["APPLICATION_ID", "SCHEMA", "SCHEMA_VERSION", "TABLES"]

APPLICATION_ID = 0x696E6365  # "ince"
SCHEMA_VERSION = 1

SCHEMA = (
    """CREATE TABLE adapters (
        digest TEXT PRIMARY KEY NOT NULL,
        base_digest TEXT,
        num_bytes INTEGER NOT NULL,
        config TEXT NOT NULL,
        created TEXT NOT NULL
    )""",
    """CREATE TABLE holdings (
        tenant TEXT NOT NULL,
        digest TEXT NOT NULL REFERENCES adapters (digest),
        lineage TEXT,
        created TEXT NOT NULL,
        PRIMARY KEY (tenant, digest)
    )""",
    "CREATE INDEX holdings_by_digest ON holdings (digest)",
    """CREATE TABLE versions (
        id INTEGER PRIMARY KEY,
        tenant TEXT NOT NULL,
        name TEXT NOT NULL,
        number INTEGER NOT NULL,
        digest TEXT NOT NULL,
        previous INTEGER REFERENCES versions (id),
        created TEXT NOT NULL,
        actor TEXT NOT NULL,
        UNIQUE (tenant, name, number)
    )""",
    """CREATE TABLE aliases (
        tenant TEXT NOT NULL,
        name TEXT NOT NULL,
        version INTEGER NOT NULL REFERENCES versions (id),
        changed TEXT NOT NULL,
        PRIMARY KEY (tenant, name)
    )""",
    """CREATE TABLE tenants (
        name TEXT PRIMARY KEY NOT NULL,
        requests_per_minute INTEGER,
        tokens_per_minute INTEGER,
        max_concurrent INTEGER,
        max_adapters INTEGER,
        max_bytes INTEGER,
        weight REAL NOT NULL,
        is_admin INTEGER NOT NULL,
        created TEXT NOT NULL
    )""",
    """CREATE TABLE permissions (
        tenant TEXT NOT NULL REFERENCES tenants (name),
        pattern TEXT NOT NULL,
        PRIMARY KEY (tenant, pattern)
    )""",
    """CREATE TABLE keys (
        id TEXT PRIMARY KEY NOT NULL,
        tenant TEXT NOT NULL REFERENCES tenants (name),
        hash TEXT NOT NULL,
        label TEXT NOT NULL,
        created TEXT NOT NULL,
        revoked TEXT
    )""",
    """CREATE TABLE usage (
        tenant TEXT NOT NULL,
        day TEXT NOT NULL,
        adapter TEXT NOT NULL,
        num_requests INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        PRIMARY KEY (tenant, day, adapter)
    )""",
    """CREATE TABLE audit (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        time TEXT NOT NULL,
        actor TEXT NOT NULL,
        action TEXT NOT NULL,
        tenant TEXT NOT NULL,
        subject TEXT NOT NULL,
        before TEXT,
        after TEXT,
        chain TEXT NOT NULL
    )""",
    """CREATE TRIGGER audit_is_not_altered BEFORE UPDATE ON audit
        BEGIN SELECT RAISE(ABORT, 'the audit log is appended to only'); END""",
    """CREATE TRIGGER audit_is_not_cut BEFORE DELETE ON audit
        BEGIN SELECT RAISE(ABORT, 'the audit log is appended to only'); END""",
)

TABLES = frozenset(
    {
        "adapters",
        "aliases",
        "audit",
        "holdings",
        "keys",
        "permissions",
        "tenants",
        "usage",
        "versions",
    }
)
