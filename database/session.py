"""Reading, and which errors are worth a retry. Both stacks use this file."""

import sqlite3
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.orm import ORMExecuteState, Session
from sqlalchemy.orm.exc import StaleDataError

from database.engine import last_statement

# Deadlocks, serialization failures and lock timeouts: PostgreSQL's SQLSTATE codes and
# MySQL's error numbers.
CONFLICTS = {"40001", "40P01", 1213, 1205, 1020}


def commit(session: Session) -> None:
    """Commit the transaction of this session, and close the session.

    Raises InvalidRequestError if its last statement has failed or still runs.
    """
    statement = last_statement(session.get_bind())
    if statement == "running":
        raise InvalidRequestError("another task still runs a statement")
    if statement == "failed":
        raise InvalidRequestError(
            "a statement failed, so this transaction can only be rolled back: "
            "use session.begin_nested() around what may fail"
        )
    session.commit()
    # In the same step, so that no other task can begin a new transaction in between.
    session.close()


def roll_back(session: Session) -> None:
    """Roll back the transaction of this session, and close session and connection."""
    connection: Any = session.get_bind()
    try:
        is_mysql = connection.dialect.name in ("mysql", "mariadb")
        if is_mysql and last_statement(connection) == "running":
            # The drivers would take the answer to this statement for that to ROLLBACK.
            connection.invalidate()
        # close() alone would leave new objects looking like stored ones.
        session.rollback()
        session.close()
    finally:
        # If another task still runs a statement, ROLLBACK may fail. Then close() has to
        # be called again, or that task could open a new connection with this object.
        try:
            connection.close()
        finally:
            connection.close()


class ReadSession(Session):
    """A Session for reading. A flush, INSERT, UPDATE or DELETE raises.

    SQL in text() is not inspected.
    """


@event.listens_for(ReadSession, "before_flush")
def refuse_flush(*_: object) -> None:
    # Without it a change would be lost when the session is closed.
    raise InvalidRequestError("This session is for reading: write in a transaction()")


@event.listens_for(ReadSession, "do_orm_execute")
def refuse_write(state: ORMExecuteState) -> None:
    # A statement does not flush. PostgreSQL would store it, the others would not.
    if state.is_insert or state.is_update or state.is_delete:
        refuse_flush()


def read_options(engine: Engine, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the execution options for reading with this engine.

    AUTOCOMMIT saves PostgreSQL the round trips of BEGIN and ROLLBACK. If `options` or
    their execution_options set an isolation level, reading happens in transactions.
    """
    chosen = {**options, **engine.get_execution_options()}
    if engine.dialect.name == "postgresql" and "isolation_level" not in chosen:
        return {"isolation_level": "AUTOCOMMIT"}
    return {}


def is_retryable(error: DBAPIError | StaleDataError, *, committing: bool) -> bool:
    """Return whether the transaction that raised this error may succeed in a retry.

    If its connection was lost during COMMIT, nobody knows whether it was stored.
    """
    if isinstance(error, StaleDataError):
        return True
    codes = {getattr(error.orig, name, None) for name in ("sqlstate", "pgcode")}
    codes |= {*getattr(error.orig, "args", ())[:1]}
    if not CONFLICTS.isdisjoint(codes):
        return True
    is_lost = error.connection_invalidated and not isinstance(error.orig, sqlite3.Error)
    return is_lost and not committing
