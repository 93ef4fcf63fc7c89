"""How transactions end: what is refused, closed or repeated."""

import asyncio
from contextlib import suppress
from threading import get_ident
from typing import Any

from sqlalchemy import Connection, Engine, ExceptionContext, event, exc, orm

# Deadlocks, lock timeouts and serialization failures on PostgreSQL and MySQL
CONFLICTS = {"40001", "40P01", 1213, 1205, 1020}

# Their ROLLBACK waits for another task's statement. Other drivers fail or hang.
WAITING_DRIVERS = ("pysqlite", "psycopg")

MISUSE = "session in use or closed: do tasks share it?"


def close(session: orm.Session) -> None:
    """Roll back and close, even if a task still uses the session."""
    conn: Any = session.get_bind()
    # Closes the session, then conn. An error here would hide the block's.
    with conn, suppress(exc.SQLAlchemyError), session:
        if not conn.invalidated:
            conn.info.update(owner=current_task(), is_over=True)
            is_shared = session.in_transaction() and conn.info["is_shared"]
            if is_shared and conn.dialect.driver not in WAITING_DRIVERS:
                conn.invalidate()
        # session.close() alone would leave new objects looking like stored ones.
        session.rollback()


def check_retry(error: Exception, conflicts: list[Exception], attempts: int) -> None:
    """Add this error to the conflicts, or raise it if no retry may succeed."""
    # The retry failed on an object that a conflict had expired.
    if conflicts and type(error) is exc.InvalidRequestError:
        raise conflicts[-1] from error
    is_conflict = isinstance(error, orm.exc.StaleDataError)
    if isinstance(error, exc.DBAPIError):
        # A COMMIT, which has no statement, may have stored the work before it failed.
        is_lost = error.connection_invalidated and error.statement
        orig: Any = error.orig
        codes = {getattr(orig, "sqlstate", None), *orig.args[:1]}
        is_conflict = bool(is_lost or CONFLICTS & codes)
    conflicts.append(error)
    if not is_conflict or len(conflicts) >= attempts:
        raise error


def watch_transactions(engine: Engine) -> None:
    """Add the listeners that follow. They keep notes in connection.info.

    `owner` is the task (or thread) that opened or closes the connection. `running` is
    the one that uses it now. `is_shared`: others have used it. `is_failed`: COMMIT is
    refused. `is_over`: statements are refused, too.
    """
    event.listen(engine, "checkout", check_out)
    event.listen(engine, "begin", reset_notes)
    event.listen(engine, "before_cursor_execute", start_statement)
    event.listen(engine, "after_cursor_execute", reset_notes)
    event.listen(engine, "commit", start_commit)
    event.listen(engine, "rollback", start_rollback)
    event.listen(engine, "checkin", check_in)
    event.listen(engine, "handle_error", handle_error)
    if engine.dialect.driver == "aiosqlite":
        # It waits for a cursor first, and another task could start meanwhile.
        event.listen(engine, "before_execute", start_statement)


def current_task() -> object:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return get_ident()


def is_busy(info: Any) -> bool:
    return info["running"] not in (None, current_task())


def may_close(conn: Connection) -> bool:
    # When two tasks close one connection of aiosqlite, one of them hangs. So the
    # owner closes it. Outside of transaction(), SQLAlchemy closes in a new task.
    owner = conn.info["owner"]
    is_alive = isinstance(owner, asyncio.Task) and not owner.done()
    is_block = "begin_immediate" in conn.get_execution_options()  # True or False
    return owner is current_task() or not (is_alive and is_block)


def check_out(_: object, record: Any, *_args: object) -> None:
    # The pool reuses connection.info. Old notes would make the next user's work fail.
    record.info.update(owner=current_task(), is_shared=False, is_over=False)
    reset_notes(record)


def reset_notes(conn: Any, *_: object) -> None:
    # What ran has ended. Without this, other tasks' statements would be refused, and so
    # would COMMIT after a savepoint was rolled back.
    conn.info.update(running=None, is_failed=False)


def start_statement(conn: Connection, *_: object) -> None:
    # Most drivers can't run two statements at once. The connection's next user would
    # commit a late one. Only aiosqlite comes here before BEGIN.
    info, task = conn.info, current_task()
    if info["is_over"] or (conn.in_transaction() and is_busy(info)):
        raise exc.InvalidRequestError(MISUSE)
    info["running"] = task
    info["is_shared"] |= task != info["owner"]


def start_commit(conn: Connection) -> None:
    # After a failed statement PostgreSQL silently turns COMMIT into ROLLBACK.
    info = conn.info
    is_misuse = info["is_over"] or is_busy(info)
    is_refused = is_misuse or info["is_failed"]
    info.update(running=current_task(), is_failed=is_refused)
    if is_refused:
        # SQLAlchemy would not roll back after a refused COMMIT.
        if conn.dialect.driver in WAITING_DRIVERS:
            conn.dialect.do_rollback(conn.connection)
        elif may_close(conn):
            conn.invalidate()
        reason = MISUSE if is_misuse else "a statement failed: use begin_nested()"
        raise exc.InvalidRequestError(reason)


def start_rollback(conn: Connection) -> None:
    if conn.closed or conn.invalidated:
        return
    # MySQL's drivers may mix up the answers to ROLLBACK and to another task's
    # statement, and hang. So the owner closes the connection instead.
    info, task = conn.info, current_task()
    must_close = is_busy(info) and conn.dialect.driver not in WAITING_DRIVERS
    if must_close and may_close(conn):
        conn.invalidate()
    elif must_close or (info["is_over"] and info["owner"] != task):
        info["is_over"] = True
        raise exc.InvalidRequestError(MISUSE)
    elif not is_busy(info):
        info.update(running=task, is_failed=False)


def check_in(_: object, record: Any) -> None:
    # The connection's next user would commit another task's late statement. It would
    # also commit what a failed COMMIT left open.
    info = record.info
    if info.get("is_failed") or (info.get("is_over") and is_busy(info)):
        record.invalidate()


def handle_error(context: ExceptionContext) -> None:
    # If the database rolls back by itself, later statements would be stored alone. If
    # COMMIT or ROLLBACK fails, the pool would reuse an open transaction.
    conn, dialect = context.connection, context.dialect
    if conn is None or conn.closed or conn.invalidated:
        return
    try:
        info = conn.info
    except NotImplementedError:  # SQLAlchemy's first queries
        return
    error = context.original_exception
    dbapi: Any = conn.connection
    is_broken = (
        context.is_disconnect
        or (context.statement is None and context.execution_context is None)  # COMMIT
        # SQLite: a full disk. MySQL: a changed snapshot, a deadlock, a lost savepoint
        or (dialect.name == "sqlite" and not dbapi.driver_connection.in_transaction)
        or error.args[:1] in ((1020,), (1213,))
        or (error.args[:1] == (1305,) and "SAVEPOINT" in str(error))
    )
    if is_broken and not may_close(conn):
        context.is_disconnect = False  # or SQLAlchemy would close it now
        info.update(is_over=True, is_failed=True)
        return
    if not is_busy(info):
        info["running"] = None
    if context.execution_context and dialect.name == "postgresql":
        info["is_failed"] = not dialect.detect_autocommit_setting(dbapi)
    if is_broken and not context.is_disconnect:
        conn.invalidate(error)
