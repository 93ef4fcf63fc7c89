"""How transactions end: what is refused, what is closed, and what is worth a retry."""

import asyncio
from contextlib import suppress
from threading import get_ident
from typing import Any

from sqlalchemy import Connection, Engine, ExceptionContext, event
from sqlalchemy.exc import DBAPIError, InvalidRequestError, SQLAlchemyError
from sqlalchemy.orm import Session, exc

# PostgreSQL's and MySQL's codes for deadlocks, lock timeouts and changed snapshots
CONFLICTS = {"40001", "40P01", 1213, 1205, 1020}

# A rollback waits until the statement of another task or thread is finished. With other
# drivers it fails, and those of MySQL may mix up the two answers.
WAITING_DRIVERS = ("pysqlite", "aiosqlite", "psycopg")


def close(session: Session) -> None:
    """Roll back and close, even if another task still uses the session."""
    connection: Any = session.get_bind()
    try:
        # An error here would hide the one that ended the block. session.close() alone
        # would leave new objects looking like stored ones.
        with suppress(SQLAlchemyError):
            session.rollback()
            session.close()
    finally:
        if connection.invalidated or not connection.info.get("is_closing"):
            connection.close()


def is_retryable(error: SQLAlchemyError) -> bool:
    """Return whether the transaction that raised this error may succeed in a retry."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, exc.StaleDataError)
    # A COMMIT, which has no statement, may have stored the work before it failed.
    is_lost = error.connection_invalidated and error.statement is not None
    orig: Any = error.orig
    codes = {getattr(orig, "sqlstate", None), *orig.args[:1]}
    return is_lost or not CONFLICTS.isdisjoint(codes)


def watch_transactions(engine: Engine) -> None:
    """Add the listeners that follow. They note in connection.info what happens."""
    event.listen(engine, "begin", begin)
    event.listen(engine, "begin_twophase", begin)
    waits_for_cursor = engine.dialect.driver == "aiosqlite"
    first = start if waits_for_cursor else refuse_after_rollback
    event.listen(engine, "before_execute", first)
    event.listen(engine, "before_cursor_execute", start)
    event.listen(engine, "after_cursor_execute", finish)
    event.listen(engine, "commit", refuse_commit)
    event.listen(engine, "rollback", roll_back)
    event.listen(engine, "checkin", check_in)
    event.listen(engine, "close", close_once)
    event.listen(engine, "handle_error", close_if_broken)


def begin(connection: Connection, *_: object) -> None:
    connection.info.update(running=None, is_failed=False, is_rolled_back=False)


def current_task() -> object:
    with suppress(RuntimeError):  # no event loop runs in this thread
        return asyncio.current_task()
    return get_ident()


def is_block(connection: Connection) -> bool:
    return "begin_immediate" in connection.get_execution_options()


def is_shared(info: dict[str, Any]) -> bool:
    running = info.get("running")
    is_over = isinstance(running, asyncio.Task) and running.done()
    return not is_over and running not in (None, current_task())


def start(connection: Connection, *_: object) -> None:
    # A statement that waits while another task rolls back would be stored afterwards.
    refuse_after_rollback(connection)
    if is_shared(connection.info):
        raise InvalidRequestError("a statement is running: do tasks share a session?")
    connection.info["running"] = current_task()


def finish(connection: Connection, *_: object) -> None:
    connection.info.update(running=None, is_failed=False)


def refuse_commit(connection: Connection) -> None:
    # After a failed statement PostgreSQL silently turns COMMIT into ROLLBACK.
    if connection.info.get("is_failed") or is_shared(connection.info):
        roll_back(connection)
        if not connection.invalidated:  # SQLAlchemy takes a failed COMMIT for done
            connection.dialect.do_rollback(connection.connection)
        raise InvalidRequestError(
            "a statement failed or still runs: use begin_nested() around what may fail"
        )
    if is_block(connection):
        connection.info["running"] = current_task()  # nobody may interrupt COMMIT


def roll_back(connection: Connection) -> None:
    if connection.invalidated:
        return
    refuse_after_rollback(connection)
    connection.info["is_rolled_back"] = True
    if is_shared(connection.info) and connection.dialect.driver not in WAITING_DRIVERS:
        connection.invalidate()


def refuse_after_rollback(connection: Connection, *_: object) -> None:
    # In a block, SQLAlchemy would begin again for a task that kept the connection.
    is_open = connection.in_transaction()
    if connection.invalidated:
        is_over = is_block(connection) and not is_open
    else:
        is_open = is_open or is_block(connection)
        is_over = is_open and connection.info.get("is_rolled_back", False)
    if is_over:
        raise InvalidRequestError("this transaction was rolled back: is it shared?")


def check_in(_connection: object, record: Any) -> None:
    # The connection's next user would commit what another task's statement stores.
    if is_shared(record.info) and not record.info.get("is_closing"):
        record.invalidate()
    record.info.update(running=None, is_rolled_back=False)


def close_once(_connection: object, record: Any) -> None:
    # When two tasks close one connection of aiosqlite, one of them waits for good.
    if record.info.get("is_closing"):
        raise InvalidRequestError("another task closes this connection")
    record.info["is_closing"] = True


def close_if_broken(context: ExceptionContext) -> None:
    # If the database rolls back by itself, later statements would be stored alone. If
    # COMMIT or ROLLBACK fails, the pool would reuse an open transaction.
    connection, dialect = context.connection, context.dialect
    if connection is None or connection.closed or connection.invalidated:
        return
    try:
        info = connection.info
    except NotImplementedError:  # SQLAlchemy's first queries on a new connection
        return
    if info.get("is_closing") or (context.statement and info.get("is_rolled_back")):
        context.is_disconnect = False  # the task that rolled back closes the connection
        return
    error = context.original_exception
    dbapi: Any = connection.connection
    if not is_shared(info):
        info["running"] = None
    if context.execution_context and dialect.name == "postgresql":
        info["is_failed"] = not dialect.detect_autocommit_setting(dbapi)
    if (
        (context.statement is None and context.execution_context is None)
        # SQLite: a full disk. MySQL: a changed snapshot, a deadlock, a lost savepoint
        or (dialect.name == "sqlite" and not dbapi.driver_connection.in_transaction)
        or (error.args and error.args[0] in (1020, 1213))
        or "SAVEPOINT" in str(error)
    ):
        connection.invalidate(error)
