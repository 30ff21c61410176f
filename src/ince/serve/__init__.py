"""One base in memory, many adapters and tenants: the engine and what speaks to it.

`ince.serve.engine` runs requests; adapters, sampling and the routes are rooms beside it.
"""
