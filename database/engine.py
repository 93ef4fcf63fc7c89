"""What each database needs from its engine. README.md beside this file says why."""

import os
import sqlite3
from contextlib import suppress
from time import monotonic
from typing import Any
from weakref import WeakSet

from sqlalchemy import URL, Connection, Engine, event, make_url
from sqlalchemy.exc import ArgumentError, InvalidatePoolError, InvalidRequestError

from database.transactions import watch_transactions


def engine_options(url: str | URL, options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments for create_engine(): `options` win over the defaults."""
    url = make_url(url)
    options = {"url": url, "hide_parameters": True, **options}
    if url.get_backend_name() == "sqlite":
        name = (url.database or "").removeprefix("file:")
        if name in ("", ":memory:") or "memory" in url.query.values():
            raise ArgumentError("use a file: SQLite in memory has one connection only")
        defaults = {"autocommit": False, "timeout": 30}
        options["connect_args"] = defaults | options.get("connect_args", {})
    return options


def read_options(engine: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return the execution options of sessions for reading."""
    defaults: dict[str, Any] = {"is_reading": True}  # see refuse_to_write()
    if engine.dialect.name == "postgresql" and "isolation_level" not in options:
        defaults["isolation_level"] = "AUTOCOMMIT"
    return {**defaults, **engine.get_execution_options()}


def configure(engine: Engine) -> None:
    """Add the event listeners of this file and of transactions.py."""
    engines.add(engine)
    event.listen(engine, "before_execute", refuse_to_write)
    watch_transactions(engine)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", set_pragmas)
        event.listen(engine, "begin", begin_immediate)
    else:
        ping_idle_connections(engine)


def set_pragmas(connection: Any, _record: object) -> None:
    # SQLite enforces foreign keys only if each connection asks. With a write-ahead log,
    # readers don't wait for the writer. A file that is read-only or locked refuses it.
    cursor = connection.cursor()
    cursor.execute("COMMIT")
    cursor.execute("PRAGMA foreign_keys = ON")
    with suppress(sqlite3.OperationalError):
        cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("BEGIN")


def begin_immediate(connection: Connection) -> None:
    # With autocommit=False, SQLAlchemy's AUTOCOMMIT would silently store nothing.
    dbapi: Any = connection.connection
    if connection.dialect.detect_autocommit_setting(dbapi):
        raise InvalidRequestError("AUTOCOMMIT is not supported on SQLite")
    # A transaction that reads and then writes fails at once, "database is locked", if
    # another one wrote in between. BEGIN IMMEDIATE waits before it reads.
    if connection.get_execution_options().get("begin_immediate"):
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def refuse_to_write(connection: Connection, statement: Any, *_: object) -> None:
    # Nothing commits what a session for reading writes, so it would be lost.
    if connection.get_execution_options().get("is_reading") and statement.is_dml:
        raise InvalidRequestError("this session is for reading: use a transaction()")


def ping_idle_connections(engine: Engine) -> None:
    # A restarted server has closed the pooled connections. pool_pre_ping=True costs a
    # round trip at each checkout, so this tests only those last used a second ago.
    @event.listens_for(engine, "checkout")
    def ping(connection: Any, record: Any, _proxy: object) -> None:
        idle = monotonic() - record.info.get("last_use", monotonic())
        record.info["last_use"] = monotonic()
        if idle > 1:
            try:
                engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error as error:
                raise InvalidatePoolError from error  # the pool opens new connections


engines: WeakSet[Engine] = WeakSet()


def forget_connections() -> None:  # or a forked process would share them
    for engine in engines:
        engine.dispose(close=False)


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=forget_connections)
