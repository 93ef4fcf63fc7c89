"""What each database needs from its engine's events."""

import asyncio
from concurrent.futures import Future
from contextlib import suppress
from sqlite3 import OperationalError
from threading import Thread
from time import monotonic
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, ExceptionContext, PoolResetState, event
from sqlalchemy.exc import InvalidatePoolError, InvalidRequestError

from database.turn import FAILED

TAKE_LOCK = "COMMIT; BEGIN IMMEDIATE"


def listen(engine: Engine) -> None:
    event.listen(engine, "handle_error", note_failure, retval=True)
    event.listen(engine, "begin", forgive)
    event.listen(engine, "rollback_savepoint", forgive)
    event.listen(engine, "savepoint", refuse_after_failure)
    event.listen(engine, "commit", refuse_after_failure)
    event.listen(engine, "reset", roll_back_failed)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", set_up_sqlite)
        event.listen(engine, "begin", begin_immediate)
        event.listen(engine, "do_execute", take_lock)
    else:
        event.listen(engine, "checkin", lambda _, record: record.info.update(used=monotonic()))
        event.listen(engine, "checkout", lambda *args: ping_if_idle(engine.dialect, *args))
        event.listen(engine, "do_connect", connect_in_time)


def note_failure(context: ExceptionContext) -> Any:
    """Note a failed statement, whoever catches its error, so that its transaction is not stored in part."""
    connection, options = context.connection, getattr(context.execution_context, "execution_options", {})
    if connection is None or connection.invalidated or context.is_disconnect or "skip_user_error_events" in options:
        return None  # gone with its transaction; or a statement of SQLAlchemy's own that may fail
    if (context.statement or "").startswith("ROLLBACK TO SAVEPOINT"):
        # the database has ended the transaction (deadlock, lock wait): what comes next would be stored alone
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False
        return connection.info.get("undone")  # the error that says why
    connection.info["failed"] = context.sqlalchemy_exception
    dbapi_connection: Any = connection.connection
    if not getattr(dbapi_connection.driver_connection, "in_transaction", True):
        dbapi_connection.cursor().execute("BEGIN")  # SQLite ended it (full disk), or BEGIN IMMEDIATE waited in vain
    return None


def forgive(connection: Connection, *_: object) -> None:
    """Forget a failure that is undone, but keep it as the cause, should ROLLBACK TO SAVEPOINT fail."""
    if not connection.invalidated:
        connection.info["undone"] = connection.info.pop("failed", None)


def refuse_after_failure(connection: Connection, *_: object) -> None:
    """Raise, where COMMIT would store the rest of a transaction alone; or nothing, without a word, on PostgreSQL."""
    if "failed" in connection.info:
        raise InvalidRequestError(FAILED) from connection.info["failed"]


def roll_back_failed(connection: Any, record: Any, state: PoolResetState) -> None:
    """Roll back after a COMMIT that fails: SQLAlchemy takes it for done, and who is next would store the rest."""
    if "failed" in record.info and not state.terminate_only:
        connection.rollback()


def set_up_sqlite(connection: Any, _: object) -> None:
    """Turn on foreign keys and the write-ahead log, which lets readers and a writer work at the same time."""
    cursor = connection.cursor()
    cursor.execute("COMMIT")  # pragmas are ignored inside the transaction that autocommit=False keeps open
    cursor.execute("PRAGMA foreign_keys = ON")
    with suppress(OperationalError):  # a read-only file, or another process is setting it
        cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("BEGIN")


def begin_immediate(connection: Connection) -> None:
    """Take the write lock now, for transaction(): one that reads first can't get it once somebody else wrote."""
    if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        raise InvalidRequestError("Python's autocommit=False overrides AUTOCOMMIT here: what is written would be lost.")
    if connection.get_execution_options().get("begin_immediate"):
        connection.exec_driver_sql(TAKE_LOCK)


def take_lock(_cursor: Any, statement: str, _parameters: Any, context: Any) -> bool:
    """Run both statements in one call to the driver: on aiosqlite each is a message to a thread."""
    if is_script := statement == TAKE_LOCK:
        connection = context.root_connection.connection.dbapi_connection
        call = getattr(connection, "run_async", lambda work: work(connection))
        call(lambda driver: driver.executescript(statement))
    return is_script


def ping_if_idle(dialect: Dialect, connection: Any, record: Any, _: object) -> None:
    """Notice a dead connection, as pool_pre_ping does, without a round trip for one that was in use a second ago."""
    try:
        if monotonic() - record.info.setdefault("used", monotonic()) > 1:
            dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error as error:
        raise InvalidatePoolError from error  # the pool then opens a new connection


def connect_in_time(dialect: Dialect, _: object, args: Any, options: dict[str, Any]) -> Any:
    """Raise TimeoutError when a server accepts and never answers: MySQL's drivers count until it accepts."""
    if dialect.name not in ("mysql", "mariadb"):
        return None  # theirs count to the end
    if dialect.is_async:
        driver = getattr(dialect.loaded_dbapi, dialect.driver)  # beneath SQLAlchemy's adapter

        async def connect_async(*args: Any, **options: Any) -> Any:
            return await asyncio.wait_for(driver.connect(*args, **options), options["connect_timeout"])

        return dialect.connect(*args, **options, async_creator_fn=connect_async)

    def connect() -> None:
        try:
            answer.set_result(dialect.connect(*args, **options))
        except Exception as error:  # handed to the caller, whatever it is
            answer.set_exception(error)

    answer = Future[Any]()
    Thread(target=connect, daemon=True).start()
    return answer.result(options["connect_timeout"])
