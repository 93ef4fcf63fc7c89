"""What each database needs from its engine's events."""

import asyncio
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from importlib import import_module
from sqlite3 import OperationalError
from threading import Thread
from time import monotonic
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, ExceptionContext, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import InvalidatePoolError, InvalidRequestError
from sqlalchemy.pool import ConnectionPoolEntry

from database.turn import FAILED


def listen(engine: Engine) -> None:
    """Attach to an engine what its database needs."""
    event.listen(engine, "handle_error", note_failure)
    event.listen(engine, "begin", lambda connection: connection.info.pop("failed", None))
    event.listen(engine, "rollback_savepoint", lambda connection, *_: connection.info.pop("failed", None))
    event.listen(engine, "commit", refuse_after_failure)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", set_up_sqlite)
        event.listen(engine, "begin", begin_immediate)
        event.listen(engine, "handle_error", begin_again)
    else:
        event.listen(engine, "checkin", lambda _, record: record.info.update(used=monotonic()))
        event.listen(engine, "checkout", partial(ping_if_idle, engine.dialect))
        event.listen(engine, "do_connect", connect_in_time)


def note_failure(context: ExceptionContext) -> None:
    """Note a failed statement, whoever catches the error; give up a connection whose savepoint is gone."""
    if (context.statement or "").startswith("ROLLBACK TO SAVEPOINT"):
        # The database has ended the transaction by itself (deadlock, lock wait, full disk), and the savepoints with it:
        # what comes next would be stored alone.
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False
    elif context.connection is not None and not context.connection.invalidated:
        context.connection.info["failed"] = True


def refuse_after_failure(connection: Connection) -> None:
    """Raise, where COMMIT would store the rest of a transaction alone; or nothing, without a word, on PostgreSQL."""
    if "failed" in connection.info:
        raise InvalidRequestError(FAILED)


def set_up_sqlite(connection: DBAPIConnection, _: object) -> None:
    """Turn on foreign keys and the write-ahead log, which lets readers and a writer work at the same time."""
    cursor = connection.cursor()
    cursor.execute("COMMIT")  # pragmas are ignored inside the transaction that autocommit=False keeps open
    cursor.execute("PRAGMA foreign_keys = ON")
    with suppress(OperationalError):  # a read-only file, or another process is setting it
        cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("BEGIN")
    cursor.close()


def begin_immediate(connection: Connection) -> None:
    """Take the write lock now, for transaction(): one that reads first can't get it once somebody else wrote."""
    if connection.get_execution_options().get("begin_immediate"):
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def begin_again(context: ExceptionContext) -> None:
    """Open a transaction where there is none: SQLite ended it (full disk), or BEGIN IMMEDIATE waited in vain."""
    if context.connection is not None and not context.connection.invalidated:
        connection: Any = context.connection.connection
        if not connection.driver_connection.in_transaction:  # each statement would be stored alone
            connection.cursor().execute("BEGIN")


def ping_if_idle(dialect: Dialect, connection: DBAPIConnection, record: ConnectionPoolEntry, _: object) -> None:
    """Notice a dead connection, as pool_pre_ping does, without a round trip for one that was in use a second ago."""
    try:
        if monotonic() - record.info.setdefault("used", monotonic()) > 1:
            dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error as error:
        raise InvalidatePoolError from error  # the pool then opens a new connection


def connect_in_time(dialect: Dialect, _: object, args: Any, options: dict[str, Any]) -> DBAPIConnection | None:
    """Raise TimeoutError when a server accepts and never answers: MySQL's drivers count until it accepts."""
    if dialect.name not in ("mysql", "mariadb"):
        return None  # theirs count to the end
    seconds = options["connect_timeout"]
    if dialect.is_async:

        async def connect_async(*args: Any, **options: Any) -> Any:
            return await asyncio.wait_for(import_module(dialect.driver).connect(*args, **options), seconds)

        return dialect.connect(*args, **options, async_creator_fn=connect_async)

    def connect() -> None:
        try:
            answer.set_result(dialect.connect(*args, **options))
        except Exception as error:  # handed to the caller, whatever it is
            answer.set_exception(error)

    answer = Future[DBAPIConnection]()
    Thread(target=connect, daemon=True).start()
    return answer.result(seconds)
