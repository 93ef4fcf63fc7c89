"""What each database needs from its engine. README.md beside this file says why."""

import os
import sqlite3
from collections.abc import Mapping
from contextlib import suppress
from time import monotonic
from typing import Any
from weakref import WeakSet

from sqlalchemy import URL, Connection, Engine, ExceptionContext, event, make_url
from sqlalchemy.exc import ArgumentError, InvalidatePoolError, InvalidRequestError


def engine_options(url: str | URL, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments for create_engine(): `options` win over the defaults."""
    url = make_url(url)
    connect_args: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        name = (url.database or "").removeprefix("file:")
        if name in ("", ":memory:") or "memory" in url.query.values():
            raise ArgumentError("use a file: SQLite in memory has one connection only")
        connect_args = {"autocommit": False, "timeout": 30}
    connect_args |= options.get("connect_args", {})
    # hide_parameters keeps personal data out of logs and error messages.
    options = {"hide_parameters": True, **options}
    return {**options, "url": url, "connect_args": connect_args}


def configure(engine: Engine) -> None:
    """Add the event listeners that the engine's database needs."""
    engines.add(engine)
    track_statements(engine)
    close_broken_connections(engine)
    if engine.dialect.name == "sqlite":
        configure_sqlite(engine)
    else:
        ping_idle_connections(engine)


def configure_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _record: object) -> None:
        # SQLite enforces foreign keys only if each connection asks for it. With a
        # write-ahead log, readers don't wait for the writer. Setting it fails on a
        # read-only file, and while another process does it.
        cursor = connection.cursor()
        cursor.execute("COMMIT")
        cursor.execute("PRAGMA foreign_keys = ON")
        with suppress(sqlite3.OperationalError):
            cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("BEGIN")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin_immediate(connection: Connection) -> None:
        # A transaction that reads and then writes fails at once, "database is locked",
        # if another one wrote in between. BEGIN IMMEDIATE waits before it reads.
        if connection.get_execution_options().get("begin_immediate"):
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("BEGIN IMMEDIATE")


def track_statements(engine: Engine) -> None:
    @event.listens_for(engine, "before_cursor_execute")
    def start(connection: Connection, *_: object) -> None:
        refuse_after_rollback(connection)
        connection.info["statement"] = "running"

    @event.listens_for(engine, "begin")
    @event.listens_for(engine, "after_cursor_execute")
    def finish(connection: Connection, *_: object) -> None:
        connection.info["statement"] = "finished"

    @event.listens_for(engine, "commit")
    def refuse_commit(connection: Connection) -> None:
        # After a failed statement PostgreSQL silently turns COMMIT into ROLLBACK.
        if connection.info.get("statement") == "failed":
            connection.invalidate()
            raise InvalidRequestError(
                "PostgreSQL can't commit after a failed statement: "
                "use session.begin_nested() around what may fail"
            )

    @event.listens_for(engine, "rollback")
    def roll_back(connection: Connection) -> None:
        if connection.invalidated:
            return
        refuse_after_rollback(connection)
        if connection.info.get("statement") != "running":
            connection.info["statement"] = "rolled back"
        elif engine.dialect.name in ("mysql", "mariadb"):
            # The drivers would mix up the answers to this statement and to ROLLBACK.
            connection.invalidate()

    @event.listens_for(engine, "checkin")
    def close_if_running(_connection: object, record: Any) -> None:
        # The connection's next user would commit the row of another task's statement.
        if record.info.get("statement") == "running":
            record.invalidate()


def refuse_after_rollback(connection: Connection) -> None:
    # Two tasks use this connection.
    if connection.info.get("statement") == "rolled back":
        raise InvalidRequestError("this transaction has been rolled back")


def close_broken_connections(engine: Engine) -> None:
    # If the database rolls back by itself (a deadlock on MySQL, a full disk on SQLite),
    # later statements would be stored alone. If COMMIT or ROLLBACK fails, the pool
    # would reuse the connection with its transaction open.
    @event.listens_for(engine, "handle_error")
    def close(context: ExceptionContext) -> None:
        connection, dialect = context.connection, engine.dialect.name
        if connection is None or connection.closed or connection.invalidated:
            return
        isolation_level = connection.get_execution_options().get("isolation_level")
        is_failed = dialect == "postgresql" and isolation_level != "AUTOCOMMIT"
        if connection.info.get("statement") != "rolled back":
            connection.info["statement"] = "failed" if is_failed else "finished"
        driver: Any = connection.connection.driver_connection
        is_end = context.statement is None and context.execution_context is None
        if (
            is_end
            or str(context.statement).startswith(("COMMIT", "ROLLBACK"))
            or (dialect == "sqlite" and not driver.in_transaction)
            or context.original_exception.args[:1] == (1213,)  # MySQL's deadlock
        ):
            context.is_disconnect = True
            context.invalidate_pool_on_disconnect = False


def ping_idle_connections(engine: Engine) -> None:
    # A restarted server has closed the pooled connections. pool_pre_ping=True costs a
    # round trip at each checkout, so this tests only those idle for a second.
    @event.listens_for(engine, "checkin")
    def note_time(_connection: object, record: Any) -> None:
        record.info["used"] = monotonic()

    @event.listens_for(engine, "checkout")
    def ping(connection: Any, record: Any, _proxy: object) -> None:
        if monotonic() - record.info.get("used", monotonic()) > 1:
            try:
                engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error as error:
                raise InvalidatePoolError from error  # the pool opens new connections


engines: WeakSet[Engine] = WeakSet()


def forget_connections() -> None:
    """Let a forked process open connections of its own instead of sharing them."""
    for engine in engines:
        engine.dispose(close=False)


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=forget_connections)
