"""What each database needs from its engine. README.md says why."""

import os
import sqlite3
from contextlib import suppress
from time import monotonic
from typing import Any
from weakref import WeakSet

from sqlalchemy import URL, Connection, Engine, event, exc, make_url, orm

from database.transactions import watch_transactions


def engine_options(url: str | URL, options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments for create_engine(): `options` win over the defaults."""
    url = make_url(url)
    options = {"url": url, "hide_parameters": True, **options}
    if url.get_backend_name() == "sqlite":
        name = (url.database or "").removeprefix("file:")
        if name in ("", ":memory:") or "memory" in url.query.values():
            raise exc.ArgumentError("use a file: in memory all share one connection")
        defaults = {"autocommit": False, "timeout": 30}
        options["connect_args"] = defaults | options.get("connect_args", {})
    return options


def read_engine(engine: Any, options: dict[str, Any]) -> Any:
    """Return the engine for reading."""
    given = {**options, **engine.get_execution_options()}
    if engine.dialect.name == "postgresql" and "isolation_level" not in given:
        engine = engine.execution_options(isolation_level="AUTOCOMMIT")
    return engine.execution_options(is_reading=True)


def configure(engine: Engine) -> None:
    """Add the listeners of this file and of transactions.py."""
    engines.add(engine)
    event.listen(engine, "before_execute", refuse_to_write)
    watch_transactions(engine)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", set_pragmas)
        event.listen(engine, "begin", begin_immediate)
    else:
        ping_idle(engine)


def set_pragmas(connection: Any, *_: object) -> None:
    # SQLite enforces foreign keys only if asked, outside of a transaction. With a
    # write-ahead log, readers don't wait. A read-only or locked file refuses it.
    cursor = connection.cursor()
    cursor.execute("COMMIT")
    cursor.execute("PRAGMA foreign_keys = ON")
    with suppress(sqlite3.OperationalError):
        cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("BEGIN")


def begin(session: orm.Session, immediate: bool) -> None:
    """Begin. On SQLite, `immediate` waits for the write lock."""
    conn: Any = session.get_bind()
    conn.execution_options(begin_immediate=immediate)
    # After session.connection(), execution options of the caller would be ignored.
    if not conn.in_transaction():
        conn.begin()


def begin_immediate(conn: Connection) -> None:
    # With autocommit=False, SQLAlchemy's AUTOCOMMIT would silently store nothing.
    dbapi: Any = conn.connection
    if conn.dialect.detect_autocommit_setting(dbapi):
        raise exc.InvalidRequestError("AUTOCOMMIT is not supported on SQLite")
    # A transaction that reads and then writes fails at once, "database is locked", if
    # another one wrote in between. BEGIN IMMEDIATE waits before it reads.
    if conn.get_execution_options().get("begin_immediate"):
        conn.exec_driver_sql("COMMIT")
        conn.exec_driver_sql("BEGIN IMMEDIATE")


def refuse_to_write(conn: Connection, statement: Any, *_: object) -> None:
    # A session for reading never commits, so what it writes would be lost. PostgreSQL,
    # in AUTOCOMMIT, would store it at once.
    if conn.get_execution_options().get("is_reading") and statement.is_dml:
        raise exc.InvalidRequestError("this session is for reading: use transaction()")


def ping_idle(engine: Engine) -> None:
    # A restarted server has closed the pooled connections. pool_pre_ping=True would
    # test them at each checkout. This does so a second after the last one.
    @event.listens_for(engine, "checkout")
    def ping(connection: Any, record: Any, *_: object) -> None:
        idle = monotonic() - record.info.get("checkout", monotonic())
        record.info["checkout"] = monotonic()
        if idle > 1:
            try:
                engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error as error:
                raise exc.InvalidatePoolError from error


engines = WeakSet[Engine]()


def forget_connections() -> None:  # or a forked process would share them
    for engine in engines:
        engine.dispose(close=False)


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=forget_connections)
