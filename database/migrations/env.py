"""Alembic's environment: connects through the sync URL and runs what the command asks for."""

import sys
from logging.config import fileConfig
from typing import Any

from alembic import context
from alembic.autogenerate.api import AutogenContext
from alembic.operations.ops import DropIndexOp, DropTableOp, ModifyTableOps
from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import ArgumentError, DBAPIError

import env
from database.models import Base
from database.shared import begin_immediate, check_url, engine_options, explain

# Several processes may bring the schema to head at once: one after the other. On SQLite, begin_immediate sees to it.
LOCKS = {
    "postgresql": "SELECT pg_advisory_xact_lock(20261122)",
    "mysql": "SELECT GET_LOCK(SHA1(DATABASE()), 600)",
    "mariadb": "SELECT GET_LOCK(SHA1(DATABASE()), 600)",
}


def import_own_type(kind: str, item: Any, autogen_context: AutogenContext) -> bool:
    """Give a revision the import for a column type of ours: Alembic writes the type's name only."""
    module = type(item).__module__
    if kind == "type" and not module.startswith("sqlalchemy."):
        autogen_context.imports.add(f"import {module}")
    return False


def keep_indexes_until_their_table_goes(_context: Any, _revision: Any, directives: list[Any]) -> None:
    """Leave a dropped table's indexes to DROP TABLE: MySQL drops none that a foreign key still needs."""
    for script in directives:
        for operations in (script.upgrade_ops.ops, script.downgrade_ops.ops):
            dropped = {operation.table_name for operation in operations if isinstance(operation, DropTableOp)}
            for operation in operations:
                if isinstance(operation, ModifyTableOps) and operation.table_name in dropped:
                    operation.ops[:] = [op for op in operation.ops if not isinstance(op, DropIndexOp)]


if context.config.cmd_opts:  # run as a command; an application that calls Alembic has a logging set-up of its own
    fileConfig(str(context.config.config_file_name), disable_existing_loggers=False)

try:
    # Not through alembic.ini: a % in a password would be an interpolation there.
    url = check_url(env.DB_SYNC_CONNECTION_STRING, is_async=False)
except (ArgumentError, ModuleNotFoundError) as error:
    sys.exit(f"DB_CONNECTION_STRING or DB_SYNC_CONNECTION_STRING: {error}")

is_sqlite = url.get_backend_name() == "sqlite"
options: dict[str, Any] = {
    "target_metadata": Base.metadata,
    "render_item": import_own_type,
    "process_revision_directives": keep_indexes_until_their_table_goes,
    # SQLite can't alter a table, so Alembic copies it; a revision that fails half-way is rolled back.
    "render_as_batch": is_sqlite,
    "transactional_ddl": True if is_sqlite else None,
}

if context.is_offline_mode():
    # named parameters: with a driver's own, every % in the script would come out doubled
    context.configure(url=url, literal_binds=True, dialect_opts={"paramstyle": "named"}, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    # Not the application's engine: with foreign keys on, dropping the table that was copied would delete the children.
    engine = create_engine(url, **engine_options(url, {"poolclass": NullPool}))
    try:
        with engine.connect() as connection:
            context.configure(connection=connection, **options)
            with context.begin_transaction():
                begin_immediate(connection)
                if url.get_backend_name() in LOCKS:
                    connection.exec_driver_sql(LOCKS[url.get_backend_name()])
                context.run_migrations()
    except DBAPIError as error:
        if error.statement not in (None, "BEGIN IMMEDIATE"):  # a revision that fails needs its traceback
            raise
        sys.exit(explain(error, url))
