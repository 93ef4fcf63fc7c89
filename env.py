"""The connection strings. An environment variable of the same name wins over what stands here.

PostgreSQL:  postgresql+asyncpg://user:password@host:5432/name
MySQL:       mysql+aiomysql://user:password@host:3306/name
"""

import os

DB_CONNECTION_STRING = os.environ.get("DB_CONNECTION_STRING", "sqlite+aiosqlite:///example.db")

# The sync stack and Alembic need a sync driver: the same database through the driver's sync counterpart.
_SYNC_DRIVERS = {"+aiosqlite": "", "+asyncpg": "+psycopg", "+aiomysql": "+pymysql", "+asyncmy": "+pymysql"}


def _sync(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    for async_driver, sync_driver in _SYNC_DRIVERS.items():
        scheme = scheme.replace(async_driver, sync_driver)
    return scheme + separator + rest


DB_SYNC_CONNECTION_STRING = os.environ.get("DB_SYNC_CONNECTION_STRING", _sync(DB_CONNECTION_STRING))
