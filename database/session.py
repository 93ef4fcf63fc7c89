"""How transactions end, what is worth a retry, and sessions for reading."""

import sqlite3
from typing import Any

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, InvalidRequestError, SQLAlchemyError
from sqlalchemy.orm import ORMExecuteState, Session
from sqlalchemy.orm.exc import StaleDataError

# Deadlocks, serialization failures and lock timeouts on PostgreSQL and MySQL.
CONFLICTS = {"40001", "40P01", 1213, 1205, 1020}


def commit(session: Session) -> None:
    """Commit. Raises InvalidRequestError if another task runs a statement."""
    connection: Any = session.get_bind()
    # Raise before COMMIT: SQLAlchemy does not roll back after a COMMIT that failed.
    if session.in_transaction() and connection.info.get("running"):
        raise InvalidRequestError("a statement is running: do tasks share a session?")
    session.commit()


def close(session: Session) -> None:
    """Roll back and close, even if another task still uses the session."""
    connection: Any = session.get_bind()
    try:
        # close() alone would leave new objects looking like stored ones.
        session.rollback()
        session.close()
    finally:
        connection.close()


def is_retryable(error: SQLAlchemyError) -> bool:
    """Return whether the transaction that raised this error may succeed in a retry."""
    orig: Any = getattr(error, "orig", None)
    if not isinstance(error, DBAPIError) or isinstance(orig, sqlite3.Error):
        return isinstance(error, StaleDataError)
    # A COMMIT, which has no statement, may have stored the work before it failed.
    is_lost = error.connection_invalidated and error.statement is not None
    codes = {getattr(orig, "sqlstate", None), *orig.args[:1]}
    return is_lost or not CONFLICTS.isdisjoint(codes)


class ReadSession(Session):
    """A Session that refuses to flush, and to execute insert(), update(), delete()."""


@event.listens_for(ReadSession, "before_flush")
def refuse_to_write(*_: object) -> None:
    # Nothing commits the change, so it would be lost.
    raise InvalidRequestError("This session is for reading: write in a transaction()")


@event.listens_for(ReadSession, "do_orm_execute")
def refuse_statement(state: ORMExecuteState) -> None:
    # A statement does not flush. PostgreSQL would store it, the others would not.
    if state.is_insert or state.is_update or state.is_delete:
        refuse_to_write()


def read_options(engine: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return the execution options for reading, unless `options` choose others."""
    # AUTOCOMMIT saves PostgreSQL the round trips of BEGIN and ROLLBACK.
    if engine.dialect.name != "postgresql" or "isolation_level" in options:
        return {}
    return {"isolation_level": "AUTOCOMMIT", **engine.get_execution_options()}
