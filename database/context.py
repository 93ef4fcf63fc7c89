"""Synchronous database access. context_async.py is the same with async and await."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from sqlalchemy import URL, create_engine
from sqlalchemy.exc import InvalidRequestError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from database.base import Base
from database.engine import configure, engine_options, read_options
from database.transactions import close, is_retryable


class DbContext:
    """An engine and its sessions, one per process. `options` go to create_engine()."""

    def __init__(self, url: str | URL, **options: Any) -> None:
        self.engine = create_engine(**engine_options(url, options))
        configure(self.engine)
        self.sessionmaker = sessionmaker(
            self.engine, expire_on_commit=False, close_resets_only=False
        )
        reading = self.engine.execution_options(**read_options(self.engine, options))
        self.read_session = sessionmaker(
            reading, autoflush=False, expire_on_commit=False, close_resets_only=False
        )

    @contextmanager
    def transaction(self, *, immediate: bool = True) -> Iterator[Session]:
        """Yield a Session. Commit at the end, roll back if the block raises.

        Raises InvalidRequestError if the block caught an error that prevents a commit.
        """
        conn = self.engine.connect()
        session = self.sessionmaker(bind=conn, join_transaction_mode="control_fully")
        try:
            # Begin now. Two tasks that both begin later would collide.
            session.connection(execution_options={"begin_immediate": immediate})
            yield session
            session.commit()
        finally:
            close(session)

    def run_transaction[T](self, work: Callable[[Session], T], attempts: int = 20) -> T:
        """Run work(session) in a transaction, and return its result.

        Retries after a deadlock, a serialization failure, a StaleDataError, or a
        connection that was lost before COMMIT. So `work` must be safe to repeat.
        """
        conflict: SQLAlchemyError | None = None
        for attempt in range(1, attempts + 1):
            try:
                with self.transaction() as session:
                    return work(session)
            except SQLAlchemyError as error:
                # `work` may use an object that the conflict has expired.
                if conflict and type(error) is InvalidRequestError:
                    raise conflict from error
                if attempt == attempts or not is_retryable(error):
                    raise
                conflict = error
            time.sleep(random.uniform(0, min(2, 0.05 * 2**attempt)))
        raise ValueError("attempts must be at least 1")

    def create_all(self) -> None:
        """Create missing tables, for tests. Applications use Alembic."""
        with self.engine.begin() as connection:
            Base.metadata.create_all(connection)

    def dispose(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.dispose()
