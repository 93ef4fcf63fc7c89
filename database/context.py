"""The sync stack: an engine, its sessions and its transactions. context_async.py is the same with async and await."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from threading import Lock
from typing import Any, Self

from sqlalchemy import URL, Connection, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import sessionmaker
from sqlalchemy.orm.exc import StaleDataError

from database.engine import (
    DbSession,
    TransactionSession,
    begin_immediate,
    can_repeat,
    check_url,
    engine_options,
    listen,
    read_options,
    take,
)
from database.models import Base


class DbContext:
    """One engine and its sessions, made once and shared by all threads.

    with DbContext("sqlite:///example.db") as db:
        user = UserRepository(db).get_by_id(1)

    Further options go to create_engine and win over the defaults: echo=True shows the SQL.
    Raises ArgumentError for what is no URL or names an async driver, ModuleNotFoundError for a missing driver.
    """

    def __init__(self, url: str | URL, **options: Any) -> None:
        url = check_url(url, is_async=False)
        self.engine = create_engine(url, **engine_options(url, options))
        listen(self.engine)
        # expire_on_commit=False: objects outlive their session
        self.sessionmaker = sessionmaker(self.engine, class_=DbSession, expire_on_commit=False)
        # for calls that only read
        readers = self.engine.execution_options(**read_options(url, options))
        self.read_sessionmaker = sessionmaker(readers, class_=DbSession, expire_on_commit=False)
        self._connection: Connection | None = None
        self._turn = Lock()

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
            tx._connection, tx._turn = connection, Lock()
            tx.sessionmaker = sessionmaker(
                connection,
                class_=TransactionSession,
                expire_on_commit=False,
                join_transaction_mode="create_savepoint",
                turn=tx._turn,
            )
            tx.read_sessionmaker = tx.sessionmaker  # what the transaction wrote, only the transaction can read
            yield tx
            take(tx._turn)  # and keep it: whoever comes after the end, or isn't done yet, is told

    def run[T](self, work: Callable[[Self], T], attempts: int = 5) -> T:
        """Run work(tx) in a transaction and return its result; run it again if the database answers "try again".

        That is a deadlock, a serialization failure, a row that changed since work read it, or a connection lost before
        COMMIT. So work may run several times: it reads what it needs itself, and does nothing that can't be undone.
        A connection lost during COMMIT is not repeated, since the work may be stored. The last error is raised as it is.

        def rename(tx: DbContext) -> None:
            ada = UserRepository(tx).get_by_id(1)
            ada.name = "Ada King"
            UserRepository(tx).update(ada)

        db.run(rename)
        """
        attempt = (
            attempts if self._connection else 1
        )  # inside a transaction, it is the whole of it that has to run again
        while True:
            committing = False
            try:
                with self.transaction() as tx:
                    result = work(tx)
                    committing = True
                return result
            except (DBAPIError, StaleDataError) as error:
                if attempt >= attempts or not can_repeat(error, committing=committing):
                    raise
            time.sleep(random.uniform(0, 0.05 * 2**attempt))  # seconds
            attempt += 1

    @contextmanager
    def _begin(self) -> Iterator[Connection]:
        if self._connection is None:
            with self.engine.begin() as connection:
                begin_immediate(connection)
                yield connection
        else:
            take(self._turn)
            try:
                with self._connection.begin_nested():
                    yield self._connection
            finally:
                self._turn.release()
