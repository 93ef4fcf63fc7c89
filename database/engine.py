"""What each database needs from its engine. Both stacks use this file."""

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
    """Return the arguments for create_engine(): the defaults, replaced by `options`.

    Raises ArgumentError for a SQLite database in memory.
    """
    url = make_url(url)
    connect_args: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        name = (url.database or "").removeprefix("file:")
        if name in ("", ":memory:") or "memory" in url.query.values():
            # It has one connection, so concurrent tasks would share a transaction.
            raise ArgumentError("SQLite in memory is not supported: use a file")
        # Without autocommit=False the driver leaves SELECT and DDL outside of
        # transactions. Wait up to 30 seconds while another connection writes.
        connect_args = {"autocommit": False, "timeout": 30}
    connect_args |= options.get("connect_args", {})
    # hide_parameters keeps personal data out of logs and error messages.
    defaults = {"hide_parameters": True}
    return {**defaults, **options, "url": url, "connect_args": connect_args}


def configure(engine: Engine) -> None:
    """Add the event listeners that the engine's database needs."""
    engines.add(engine)
    track_statements(engine)
    give_up_broken_connections(engine)
    if engine.dialect.name == "sqlite":
        configure_sqlite(engine)
    else:
        ping_idle_connections(engine)


def configure_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _record: object) -> None:
        # SQLite enforces foreign keys only if each connection asks for it, outside of
        # a transaction. With a write-ahead log, readers and a writer do not block each
        # other. The log can't be set on a read-only file, or while another process
        # opens the same file. That process sets it then, and the file keeps it.
        cursor = connection.cursor()
        cursor.execute("COMMIT")
        cursor.execute("PRAGMA foreign_keys = ON")
        with suppress(sqlite3.OperationalError):
            cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("BEGIN")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin_immediate(connection: Connection) -> None:
        # A transaction that reads first and writes later fails at once with "database
        # is locked" if another one wrote in between. BEGIN IMMEDIATE waits for the
        # write lock before it reads.
        options = connection.get_execution_options()
        if options.get("isolation_level") == "AUTOCOMMIT":
            # The driver ignores it, so work without a commit() would be lost.
            raise InvalidRequestError("AUTOCOMMIT has no effect with autocommit=False")
        if options.get("begin_immediate"):
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("BEGIN IMMEDIATE")


def track_statements(engine: Engine) -> None:
    # A transaction can't be committed in two cases. After a failed statement PostgreSQL
    # turns COMMIT into ROLLBACK without an error. While another task still runs a
    # statement, for example after asyncio.gather(), the drivers can't commit or roll
    # back, and the connection's next user would store that task's work.
    @event.listens_for(engine, "before_cursor_execute")
    def start(connection: Connection, *_: object) -> None:
        connection.info["statement"] = "running"

    @event.listens_for(engine, "after_cursor_execute")
    def finish(connection: Connection, *_: object) -> None:
        connection.info["statement"] = "finished"

    @event.listens_for(engine, "rollback")
    def forget_failure(connection: Connection) -> None:
        if last_statement(connection) == "failed":
            connection.info["statement"] = "finished"

    @event.listens_for(engine, "checkin")
    def close_if_running(_connection: object, record: Any) -> None:
        if record.info.get("statement") == "running":
            record.invalidate()


def last_statement(connection: Any) -> str | None:
    """Return whether the last statement is "running", "finished" or "failed"."""
    if connection.closed or connection.invalidated:
        return None
    return connection.info.get("statement")


def give_up_broken_connections(engine: Engine) -> None:
    # After some errors the transaction is not what SQLAlchemy takes it for, and later
    # statements would be stored alone. Closing the connection stores nothing. This
    # happens when the database has rolled back by itself (a deadlock on MySQL, a full
    # disk on SQLite), and when COMMIT or ROLLBACK fails: SQLAlchemy returns the
    # connection to the pool with the transaction open.
    @event.listens_for(engine, "handle_error")
    def give_up(context: ExceptionContext) -> None:
        connection, dialect = context.connection, engine.dialect.name
        if connection is None or connection.closed or connection.invalidated:
            return
        is_failed = dialect == "postgresql"
        connection.info["statement"] = "failed" if is_failed else "finished"
        driver: Any = connection.connection.driver_connection
        code = context.original_exception.args[:1]
        if (
            context.statement is None  # COMMIT or ROLLBACK
            or context.statement.startswith("ROLLBACK TO SAVEPOINT")
            or (dialect == "sqlite" and not driver.in_transaction)
            or (dialect in ("mysql", "mariadb") and code == (1213,))
        ):
            context.is_disconnect = True
            context.invalidate_pool_on_disconnect = False


def ping_idle_connections(engine: Engine) -> None:
    # A server that was restarted has closed the pooled connections, and the next
    # requests would fail. pool_pre_ping=True tests a connection at each checkout, which
    # costs a round trip. This tests only those that were not used for a second.
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
    """Let a forked process open connections of its own.

    Two processes that share a connection read each other's rows.
    """
    for engine in engines:
        engine.dispose(close=False)


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=forget_connections)
