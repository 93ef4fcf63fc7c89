"""The connection strings. An environment variable of the same name wins over what stands here."""

import os
import re

# Or postgresql+asyncpg://user:password@host:5432/name, or mysql+aiomysql://user:password@host:3306/name
DB_CONNECTION_STRING = os.environ.get("DB_CONNECTION_STRING", "sqlite+aiosqlite:///example.db")

# For the sync stack and Alembic: the same database through the sync driver. psycopg is both, and stays.
SYNC_DRIVERS = {"+aiosqlite": "", "+asyncpg": "+psycopg", "+aiomysql": "+pymysql", "+asyncmy": "+pymysql"}
sync_url = re.sub(r"^(\w+)(\+\w+)", lambda url: url[1] + SYNC_DRIVERS.get(url[2], url[2]), DB_CONNECTION_STRING)
DB_SYNC_CONNECTION_STRING = os.environ.get("DB_SYNC_CONNECTION_STRING", sync_url)
