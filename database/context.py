"""The sync stack: an engine, its sessions and its transactions. context_async.py is the same with async and await."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

from sqlalchemy import URL, create_engine
from sqlalchemy.orm import Session, sessionmaker

from database.base import Base
from database.engine import REPEATABLE, can_repeat, engine_options, set_up
from database.turn import Turn


class DbTransaction:
    """What transaction() yields: calls on one session, which close_resets_only keeps from being used after the end."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._turn = Turn()

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Yield the transaction's session; raises InvalidRequestError while in use, after a failed call and the end."""
        with self._turn.call():
            yield self._session
            self._session.flush()

    read_session = session  # what the transaction wrote, only the transaction itself can read

    @contextmanager
    def transaction(self) -> Iterator[Self]:
        """Yield an inner transaction, a savepoint: if its block raises, only the block's work is undone."""
        with self._turn.call(dooms=False):
            with self._session.begin_nested(), type(self)(self._session).until_end() as inner:
                yield inner

    @contextmanager
    def until_end(self) -> Iterator[Self]:
        """Yield the transaction; at the end of the block refuse new calls, and wait for the one under way."""
        connection = self._session.connection()
        try:
            yield self
        finally:
            try:
                for _ in self._turn.end():
                    time.sleep(0.01)
            finally:
                if not self._turn.ended:  # a call that never ends, or the wait was cancelled: this makes COMMIT raise
                    connection.invalidate()
        self._turn.check(self._turn.ended and self._session.in_transaction() and self._session.is_active)


class DbContext(AbstractContextManager["DbContext"]):
    """One engine and its sessions, made once and shared by all threads. The options go to create_engine.

    with DbContext("sqlite:///example.db") as db:
        acme = CompanyRepository(db).get_by_id(1)
    """

    def __init__(self, url: str | URL, **options: Any) -> None:
        self.engine = create_engine(**engine_options(url, options, is_async=False))
        self.sessionmaker = sessionmaker(self.engine, expire_on_commit=False)  # objects outlive their session
        self.dispose = self.engine.dispose  # closes the pooled connections; a context used after that opens new ones
        self.read_session = set_up(self.engine, options)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Yield a new session: commits at the end of the block, rolls back on any exception."""
        with self.sessionmaker() as session, session.begin():
            yield session
            if not session.is_active:  # a failed flush was caught: begin() alone says nothing
                session.commit()  # raises PendingRollbackError

    @contextmanager
    def transaction(self) -> Iterator[DbTransaction]:
        """Yield a context whose calls share one transaction, all stored or none. It belongs to one thread.

        with db.transaction() as tx:
            CompanyRepository(tx).create(acme)

        A call that raises dooms it, caught or not; what may fail goes into an inner one, tx.transaction().
        """
        with self.sessionmaker(close_resets_only=False) as session, session.begin():
            session.connection(execution_options={"begin_immediate": True})
            with DbTransaction(session).until_end() as tx:
                yield tx

    def run[T](self, work: Callable[[DbTransaction], T], attempts: int = 10) -> T:
        """Return work(tx), run in a transaction, and run again when the database says "conflict, try again".

        That is a deadlock, serialization failure, stale row, or connection lost before COMMIT: work must be repeatable.
        """
        committing = False
        try:
            with self.transaction() as tx:
                result = work(tx)
                committing = True
            return result
        except REPEATABLE as error:
            if attempts <= 1 or not can_repeat(error, committing=committing):
                raise
        time.sleep(random.uniform(0, 1 / attempts))  # seconds, ever more; by chance, so that rivals part
        return self.run(work, attempts - 1)

    def create_all(self) -> None:
        """Create the missing tables. For tests and scripts: an application leaves its schema to Alembic."""
        with self.engine.execution_options(begin_immediate=True).begin() as connection:
            Base.metadata.create_all(connection)

    def drop_all(self) -> None:
        """Drop the tables of the models and all that is in them."""
        with self.engine.execution_options(begin_immediate=True).begin() as connection:
            Base.metadata.drop_all(connection)

    def __exit__(self, *_: object) -> None:
        self.dispose()
