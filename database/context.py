"""The sync stack: an engine, its sessions and its transactions. context_async.py is the same with async and await."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, Self

from sqlalchemy import URL, Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.orm.exc import StaleDataError

from database import shared
from database.models import Base


class DbContext:
    """One engine and its sessions, made once and shared by all threads.

    with DbContext("sqlite:///example.db") as db:
        user = UserRepository(db).get_by_id(1)

    Further options go to create_engine and win over the defaults: echo=True shows the SQL.
    Raises ArgumentError for what is no URL or names an async driver, ModuleNotFoundError for a missing driver.
    """

    def __init__(self, url: str | URL, **options: Any) -> None:
        url = shared.check_url(url, is_async=False)
        self.engine = create_engine(url, **shared.engine_options(url, options))
        shared.listen(self.engine)
        self.sessionmaker = sessions(self.engine)
        self.read_sessionmaker = sessions(self.engine.execution_options(**shared.read_options(url, options)))
        self._connection: Connection | None = None
        self._turn = shared.Turn()

    def create_all(self) -> None:
        """Create the missing tables. For tests and scripts: an application leaves its schema to Alembic."""
        with self._begin() as connection:
            Base.metadata.create_all(connection)

    def drop_all(self) -> None:
        """Drop the tables of the models and all that is in them."""
        with self._begin() as connection:
            Base.metadata.drop_all(connection)

    def dispose(self) -> None:
        """Close the pooled connections. A context used after that opens new ones."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.dispose()

    @contextmanager
    def transaction(self) -> Iterator[Self]:
        """Yield a context whose repositories share one transaction: all or nothing. It belongs to one thread.

        with db.transaction() as tx:
            UserRepository(tx).create(ada)
            UserRepository(tx).delete(7)

        A call that raises undoes only itself if you catch it. A transaction in a transaction is a savepoint.
        """
        with self._begin() as connection:
            tx = copy(self)
            tx._connection, tx._turn = connection, shared.Turn()
            tx.sessionmaker = sessions(connection, join_transaction_mode="create_savepoint", turn=tx._turn)
            tx.read_sessionmaker = tx.sessionmaker  # what it wrote, only the transaction itself can read
            try:
                yield tx
            finally:
                if late := tx._turn.is_taken_by_another():  # its call would run into our ROLLBACK
                    try:
                        tx._turn.lock.acquire(timeout=30)
                    except BaseException:  # cancelled while it waits
                        connection.invalidate()
                        raise
            if late:
                raise InvalidRequestError(shared.IN_USE)
            tx._turn.take()  # and keep it: who comes after the end is told

    def run[T](self, work: Callable[[Self], T], attempts: int = 5) -> T:
        """Return work(tx), run in a transaction, and run again when the database says "conflict, try again".

        That is a deadlock, a serialization failure, a row changed since work read it, or a connection lost before
        COMMIT. So work must be repeatable: it reads what it changes, and does nothing outside the database. It is not
        repeated after a connection lost during COMMIT: it may be stored. The last error comes out as it was.

        db.run(lambda tx: UserRepository(tx).delete(7))
        """
        attempt = 1
        while True:
            committing = False
            try:
                with self.transaction() as tx:
                    result = work(tx)
                    committing = True
                return result
            except (DBAPIError, StaleDataError) as error:
                # inside a transaction, the whole of it has to run again
                if attempt >= attempts or self._connection or not shared.can_repeat(error, committing=committing):
                    raise
            time.sleep(random.uniform(0, min(0.05 * 2**attempt, 1)))  # seconds; by chance, so that rivals part
            attempt += 1

    @contextmanager
    def _begin(self) -> Iterator[Connection]:
        if self._connection is None:
            with self.engine.begin() as connection:
                shared.begin_immediate(connection)
                yield connection
        else:
            self._turn.take()
            try:
                with self._connection.begin_nested():
                    yield self._connection
            finally:
                self._turn.lock.release()


def sessions(bind: Engine | Connection, **options: Any) -> sessionmaker[Session]:
    # expire_on_commit=False: objects outlive their session
    return sessionmaker(bind, class_=shared.DbSession, expire_on_commit=False, **options)
