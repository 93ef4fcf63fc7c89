"""Alembic's environment: connects through the sync URL and runs what the command asks for."""

from contextlib import nullcontext
from logging.config import fileConfig

from alembic import context
from alembic.util import CommandError
from database.listeners import connect_in_time, note_failure
from sqlalchemy import MetaData, NullPool, Table, create_engine, event

import database.models  # noqa: F401  # its tables join Base.metadata
import env
from database.base import Base
from database.engine import engine_options, explain

LOCKS = {  # several processes may bring the schema to head at once: one after the other
    "sqlite": ("COMMIT", "BEGIN IMMEDIATE"),
    "postgresql": ("SELECT pg_advisory_xact_lock(20261122)",),
    **dict.fromkeys(
        ("mysql", "mariadb"), ("SELECT GET_LOCK(SHA1(DATABASE()), 86400)",)
    ),  # a day; then on without it
}


@event.listens_for(Table, "after_parent_attach")
def keep_counter(table: Table, _: MetaData) -> None:
    """Give the copy that SQLite's batch mode makes AUTOINCREMENT, and its counter: an id would come twice without."""
    if (
        name := table.name.removeprefix("_alembic_tmp_")
    ) != table.name and name in Base.metadata.tables:
        table.dialect_kwargs.update(Base.metadata.tables[name].dialect_kwargs)
        counter = f"INSERT INTO sqlite_sequence SELECT '{table.name}', seq FROM sqlite_sequence WHERE name = '{name}'"
        event.listen(table, "after_create", lambda *_, **__: context.execute(counter))


if context.config.cmd_opts:  # run as a command; an application that calls Alembic has a logging set-up of its own
    fileConfig(str(context.config.config_file_name), disable_existing_loggers=False)

try:
    # Not through alembic.ini, which interpolates %. Without foreign keys: dropping a copied table deletes children.
    engine = create_engine(
        **engine_options(
            env.DB_SYNC_CONNECTION_STRING, {"poolclass": NullPool}, is_async=False
        )
    )
    event.listen(engine, "do_connect", connect_in_time)
    event.listen(engine, "handle_error", note_failure, retval=True)
    connecting = nullcontext() if context.is_offline_mode() else engine.connect()
except (
    Exception
) as error:  # whatever the driver raises: some have exceptions of their own
    raise SystemExit(explain(error, env.DB_SYNC_CONNECTION_STRING)) from None

with connecting as connection:
    context.configure(
        connection,
        engine.url,
        target_metadata=Base.metadata,
        render_as_batch=engine.dialect.name
        == "sqlite",  # it can't alter a table, so Alembic copies it
        transactional_ddl=engine.dialect.name == "sqlite"
        or None,  # a revision that fails half-way is rolled back
        literal_binds=context.is_offline_mode(),
        dialect_opts={
            "paramstyle": "named"
        },  # a driver's own would double each % in an offline script
    )
    with context.begin_transaction():
        for statement in LOCKS.get(engine.dialect.name, ()):
            context.execute(statement)
        try:
            context.run_migrations()
        except CommandError as error:
            raise CommandError(
                f"{error} (alembic upgrade head brings the database up to date)"
            ) from None
