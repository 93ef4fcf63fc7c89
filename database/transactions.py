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

# Their ROLLBACK waits for the statement of another task. With other drivers it fails.
WAITING_DRIVERS = ("pysqlite", "psycopg")


def close(session: Session) -> None:
    """Roll back and close, even if another task still uses the session."""
    connection: Any = session.get_bind()
    try:
        # An error here would hide the one that ended the block.
        with suppress(SQLAlchemyError):
            if not connection.invalidated:
                task, info = current_task(), connection.info
                info.update(owner=task, closer=task)
                is_shared = session.in_transaction() and info["tasks"] - {task}
                if is_shared and connection.dialect.driver not in WAITING_DRIVERS:
                    connection.invalidate()
            # session.close() alone would leave new objects looking like stored ones.
            session.rollback()
            session.close()
    finally:
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
    """Add the listeners that follow. They keep notes in connection.info.

    `tasks` have run statements: asyncio tasks, or threads. `running` is the one whose
    statement, COMMIT or ROLLBACK runs now. `owner` opened the connection, and no other
    task may close it. `closer` ends the transaction, and nobody may use it any more.
    """
    event.listen(engine, "checkout", check_out)
    event.listen(engine, "begin", reset)
    event.listen(engine, "before_execute", start)
    event.listen(engine, "before_cursor_execute", start)
    event.listen(engine, "after_cursor_execute", reset)
    event.listen(engine, "commit", start_commit)
    event.listen(engine, "rollback", start_rollback)
    event.listen(engine, "checkin", check_in)
    event.listen(engine, "handle_error", close_if_broken)


def current_task() -> object:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return get_ident()


def is_running(info: dict[str, Any]) -> bool:
    return info.get("running") not in (None, current_task())


def is_owner(info: dict[str, Any]) -> bool:
    # When two tasks close one connection of aiosqlite, one of them waits for good.
    is_alive = isinstance(info["owner"], asyncio.Task) and not info["owner"].done()
    return not is_alive or info["owner"] is current_task()


def check_out(_connection: object, record: Any, _proxy: object) -> None:
    record.info.update(owner=current_task(), closer=None, tasks=set(), running=None)


def reset(connection: Connection, *_: object) -> None:
    connection.info.update(running=None, is_failed=False)


def start(connection: Connection, *_: object) -> None:
    # Most drivers can't run two statements at once. One that starts while the block
    # ends would be stored by the connection's next user, or SQLAlchemy would reconnect.
    is_open = connection.in_transaction()
    is_block = "begin_immediate" in connection.get_execution_options()
    if connection.invalidated and is_block and not is_open:
        raise InvalidRequestError("this transaction has ended: do tasks share it?")
    info = connection.info
    if info["closer"] or (is_open and is_running(info)):
        raise InvalidRequestError("a statement is running: do tasks share a session?")
    info["running"] = current_task()
    info["tasks"].add(info["running"])


def start_commit(connection: Connection) -> None:
    # After a failed statement PostgreSQL silently turns COMMIT into ROLLBACK.
    info = connection.info
    is_refused = bool(info["is_failed"] or info["closer"] or is_running(info))
    info.update(running=current_task(), is_failed=is_refused)
    if is_refused:
        # SQLAlchemy takes a refused COMMIT for done, and would not roll back.
        if connection.dialect.driver in WAITING_DRIVERS:
            connection.dialect.do_rollback(connection.connection)
        elif is_owner(info):
            connection.invalidate()
        raise InvalidRequestError(
            "a statement failed or still runs: use begin_nested() around what may fail"
        )


def start_rollback(connection: Connection) -> None:
    if connection.closed or connection.invalidated:
        return
    # MySQL's drivers may mix up the answers to ROLLBACK and to the statement of another
    # task, and wait for good. So the connection is closed instead, by its owner.
    info, task = connection.info, current_task()
    must_close = is_running(info) and connection.dialect.driver not in WAITING_DRIVERS
    if must_close and is_owner(info):
        connection.invalidate()
    elif must_close or info["closer"] not in (None, task):
        info["closer"] = info["owner"]
        raise InvalidRequestError("a statement is running: do tasks share a session?")
    elif not is_running(info):
        info.update(running=task, is_failed=False)


def check_in(_connection: object, record: Any) -> None:
    # The connection's next user would commit what another thread's statement stores.
    if is_running(record.info) or record.info.get("is_failed"):
        record.invalidate()


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
    error = context.original_exception
    dbapi: Any = connection.connection
    is_broken = (
        context.is_disconnect
        or (context.statement is None and context.execution_context is None)
        # SQLite: a full disk. MySQL: a changed snapshot, a deadlock, a lost savepoint
        or (dialect.name == "sqlite" and not dbapi.driver_connection.in_transaction)
        or (error.args and error.args[0] in (1020, 1213))
        or "SAVEPOINT" in str(error)
    )
    if is_broken and not is_owner(info):
        context.is_disconnect = False
        info["closer"] = info["owner"]
        return
    if not is_running(info):
        info["running"] = None
    if context.execution_context and dialect.name == "postgresql":
        info["is_failed"] = not dialect.detect_autocommit_setting(dbapi)
    if is_broken:
        connection.invalidate(error)
