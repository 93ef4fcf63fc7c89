"""Alembic runs this file for each command that needs the database."""

import time
from logging.config import fileConfig
from typing import Any

import sqlalchemy as sa
from alembic import context

import database.models  # noqa: F401 - fills Base.metadata
import env  # beside main.py
from database.base import Base
from database.engine import engine_options


def import_type(kind: str, item: Any, autogen: Any) -> bool:
    # Alembic writes module.Name() into a revision, but does not import the module.
    module = type(item).__module__
    if kind == "type" and not module.startswith("sqlalchemy."):
        autogen.imports.add(f"import {module}")
    return False  # Alembic renders it


def wait_for_lock(conn: sa.Connection) -> None:
    # Only one process migrates at a time. A commit does not release the lock.
    lock = "SELECT GET_LOCK(SHA1(DATABASE()), 0)"
    if conn.dialect.name == "postgresql":
        lock = "SELECT pg_try_advisory_lock(20261122)"
    while not conn.scalar(sa.text(lock)):
        # Waiting in a statement or a transaction blocks CREATE INDEX CONCURRENTLY.
        conn.rollback()
        time.sleep(0.2)
    conn.rollback()


if context.config.cmd_opts:  # run by the alembic command
    fileConfig(str(context.config.config_file_name), disable_existing_loggers=False)

url = env.DB_SYNC_CONNECTION_STRING
is_sqlite = url.startswith("sqlite")
options: Any = {
    "target_metadata": Base.metadata,
    "render_item": import_type,
    "render_as_batch": True,  # SQLite can't alter a column
    "transactional_ddl": is_sqlite or None,  # one transaction for all revisions
}
if context.is_offline_mode():
    # The driver's own paramstyle would double each % in the script.
    style = {"paramstyle": "named"}
    context.configure(url=url, literal_binds=True, dialect_opts=style, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    # No configure(): with foreign keys, dropping a copied table deletes children.
    engine = sa.create_engine(**engine_options(url, {"poolclass": sa.NullPool}))
    with engine.connect() as conn:
        if not is_sqlite:
            wait_for_lock(conn)
        context.configure(conn, **options)
        with context.begin_transaction():
            if is_sqlite:  # other processes wait for the write lock
                conn.exec_driver_sql("COMMIT")
                conn.exec_driver_sql("BEGIN IMMEDIATE")
            context.run_migrations()
