"""What each database needs from its engine. README.md beside this file says why."""

import os
import sqlite3
from contextlib import suppress
from time import monotonic
from typing import Any
from weakref import WeakSet

from sqlalchemy import URL, Connection, Engine, ExceptionContext, event, make_url
from sqlalchemy.exc import ArgumentError, InvalidatePoolError, InvalidRequestError


def engine_options(url: str | URL, options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments for create_engine(): `options` win over the defaults."""
    url = make_url(url)
    # hide_parameters keeps personal data out of logs and error messages.
    options = {"url": url, "hide_parameters": True, **options}
    if url.get_backend_name() == "sqlite":
        name = (url.database or "").removeprefix("file:")
        if name in ("", ":memory:") or "memory" in url.query.values():
            raise ArgumentError("use a file: SQLite in memory has one connection only")
        defaults = {"autocommit": False, "timeout": 30}
        options["connect_args"] = defaults | options.get("connect_args", {})
    return options


def configure(engine: Engine) -> None:
    """Add the event listeners that are defined below."""
    engines.add(engine)
    event.listen(engine, "begin", begin)
    event.listen(engine, "begin_twophase", begin)
    event.listen(engine, "before_cursor_execute", start)
    event.listen(engine, "after_cursor_execute", finish)
    event.listen(engine, "commit", refuse_commit)
    event.listen(engine, "rollback", roll_back)
    event.listen(engine, "checkin", check_in)
    event.listen(engine, "handle_error", close_if_broken)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", set_pragmas)
        event.listen(engine, "begin", begin_immediate)
    else:
        ping_idle_connections(engine)


def set_pragmas(connection: Any, _record: object) -> None:
    # SQLite enforces foreign keys only if each connection asks. With a write-ahead log,
    # readers don't wait for the writer. Setting the log fails on a read-only file, and
    # while another process sets it.
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


# A rollback waits until the statement of another task or thread is finished. With other
# drivers it fails, and those of MySQL may mix up the two answers.
DRIVERS_THAT_WAIT = ("pysqlite", "aiosqlite", "psycopg")


def begin(connection: Connection, *_: object) -> None:
    connection.info.update(running=0, is_failed=False, is_rolled_back=False)


def start(connection: Connection, *_: object) -> None:
    # Two tasks may share a transaction by mistake, in asyncio.gather() for example. A
    # statement that waits while the other task rolls back would be stored afterwards.
    refuse_after_rollback(connection)
    running = connection.info.get("running", 0)
    if running and connection.dialect.driver in DRIVERS_THAT_WAIT:
        raise InvalidRequestError("a statement is running: do tasks share a session?")
    connection.info["running"] = running + 1


def finish(connection: Connection, *_: object) -> None:
    running = max(0, connection.info.get("running", 0) - 1)
    connection.info.update(running=running, is_failed=False)


def roll_back(connection: Connection) -> None:
    if connection.invalidated:
        return
    refuse_after_rollback(connection)
    connection.info["is_rolled_back"] = True
    is_waiting = connection.dialect.driver in DRIVERS_THAT_WAIT
    if connection.info.get("running") and not is_waiting:
        connection.invalidate()


def refuse_after_rollback(connection: Connection) -> None:
    if connection.info.get("is_rolled_back"):
        raise InvalidRequestError("this transaction was rolled back: is it shared?")


def check_in(_connection: object, record: Any) -> None:
    # The connection's next user would commit what another task's statement stores.
    if record.info.get("running"):
        record.invalidate()
    record.info["used"] = monotonic()  # see ping_idle_connections()


def refuse_commit(connection: Connection) -> None:
    # After a failed statement PostgreSQL silently turns COMMIT into ROLLBACK.
    if connection.info.get("is_failed") or connection.info.get("running"):
        raise InvalidRequestError(
            "a statement failed or still runs: use begin_nested() around what may fail"
        )


def close_if_broken(context: ExceptionContext) -> None:
    # If the database rolls back by itself, later statements would be stored alone. If
    # COMMIT or ROLLBACK fails, the pool would reuse an open transaction.
    connection, dialect = context.connection, context.dialect
    if connection is None or connection.closed or connection.invalidated:
        return
    error = context.original_exception
    if isinstance(error, InvalidRequestError):  # see start()
        return
    dbapi: Any = connection.connection
    # SQLAlchemy's first queries on a new connection run outside of a transaction.
    if context.execution_context and connection.in_transaction():
        finish(connection)
        is_postgresql = dialect.name == "postgresql"
        is_failed = is_postgresql and not dialect.detect_autocommit_setting(dbapi)
        connection.info["is_failed"] = is_failed
    if (
        (context.statement is None and context.execution_context is None)
        # a full disk
        or (dialect.name == "sqlite" and not dbapi.driver_connection.in_transaction)
        # MySQL: a changed snapshot, a deadlock, a savepoint that no longer exists
        or (error.args and error.args[0] in (1020, 1213, 1305))
    ):
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False


def ping_idle_connections(engine: Engine) -> None:
    # A restarted server has closed the pooled connections. pool_pre_ping=True costs a
    # round trip at each checkout, so this tests only those idle for a second.
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
