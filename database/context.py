"""Synchronous database access. context_async.py is the same with async and await."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from sqlalchemy import URL, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.orm.exc import StaleDataError

from database.base import Base
from database.engine import configure, engine_options
from database.session import ReadSession, commit, is_retryable, read_options, roll_back


class DbContext:
    """An engine and its sessions. Make one per process, and share it between threads.

    with DbContext("sqlite:///example.db") as db:
        user = UserRepository(db).get_by_id(1)

    Keyword arguments go to create_engine(). They replace the defaults.
    """

    def __init__(self, url: str | URL, **options: Any) -> None:
        self.engine = create_engine(**engine_options(url, options))
        configure(self.engine)
        # Objects stay readable after a commit. A closed session can't be used again.
        self.sessionmaker = sessionmaker(
            self.engine, expire_on_commit=False, close_resets_only=False
        )
        self.read_sessionmaker = sessionmaker(
            self.engine.execution_options(**read_options(self.engine, options)),
            class_=ReadSession,
            autoflush=False,
            expire_on_commit=False,
            close_resets_only=False,
        )

    def read_session(self) -> Session:
        """Return a Session for reading.

        A flush, INSERT, UPDATE or DELETE raises InvalidRequestError.
        """
        return self.read_sessionmaker()

    @contextmanager
    def transaction(self, *, begin_immediate: bool = True) -> Iterator[Session]:
        """Yield a Session. Commit at the end of the block, roll back if it raises.

        Raises InvalidRequestError if the block caught an error that PostgreSQL or the
        session can't commit after. Use session.begin_nested() around what may fail.
        begin_immediate=False saves SQLite two statements if the block does not read.
        """
        # The connection is closed even if another task keeps the session from closing.
        with self.engine.connect() as connection:
            connection.execution_options(begin_immediate=begin_immediate)
            with self.sessionmaker(bind=connection) as session:
                try:
                    session.connection()  # begin now, not with the first statement
                    yield session
                    commit(session)
                except BaseException:
                    roll_back(session)
                    raise

    def run_transaction[T](self, work: Callable[[Session], T], attempts: int = 20) -> T:
        """Return the result of work(session), run in a transaction.

        The transaction is retried after a deadlock, a serialization failure, a
        StaleDataError or a connection that was lost before COMMIT. So `work` must be
        safe to repeat. After the last attempt its error is raised.
        """
        for attempt in range(1, attempts + 1):
            committing = False
            try:
                with self.transaction() as session:
                    result = work(session)
                    session.flush()
                    committing = True
                return result
            except (DBAPIError, StaleDataError) as error:
                if attempt == attempts or not is_retryable(
                    error, committing=committing
                ):
                    raise
            # Exponential backoff with full jitter, so that rivals do not meet again.
            time.sleep(random.uniform(0, min(2, 0.05 * 2**attempt)))
        raise ValueError("attempts must be at least 1")

    def create_all(self) -> None:
        """Create the missing tables. This is for tests: applications use Alembic."""
        with self.engine.begin() as connection:
            Base.metadata.create_all(connection)

    def dispose(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.dispose()
