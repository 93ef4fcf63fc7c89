"""Synchronous database access. context_async.py is its twin."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

from sqlalchemy import URL, create_engine, exc
from sqlalchemy.orm import Session, sessionmaker

from database.base import Base
from database.engine import begin, configure, engine_options, read_engine
from database.transactions import check_retry, close


class DbContext:
    """One per process: an engine and its sessions. `options` go to create_engine()."""

    def __init__(self, url: str | URL, **options: Any) -> None:
        self.engine = create_engine(**engine_options(url, options))
        configure(self.engine)
        self.sessionmaker = sessionmaker(
            self.engine, expire_on_commit=False, close_resets_only=False
        )
        reading = read_engine(self.engine, options)
        self.read_session = partial(self.sessionmaker, bind=reading, autoflush=False)

    @contextmanager
    def transaction(self, *, immediate: bool = True) -> Iterator[Session]:
        """Yield a Session. Commit at the end, roll back if the block raises.

        Raises InvalidRequestError if the block caught an error that prevents a commit.
        """
        conn = self.engine.connect()
        session = self.sessionmaker(bind=conn, join_transaction_mode="control_fully")
        try:
            begin(session, immediate)
            yield session
            session.commit()
        finally:
            close(session)

    def run_transaction[T](self, work: Callable[[Session], T], attempts: int = 20) -> T:
        """Run work(session) in a transaction, and return its result.

        Retries after a deadlock, a serialization failure, a StaleDataError or a
        connection lost before COMMIT. So `work` must be safe to repeat.
        """
        conflicts: list[Exception] = []
        while True:
            try:
                with self.transaction() as session:
                    return work(session)
            except exc.SQLAlchemyError as error:
                check_retry(error, conflicts, attempts)
            time.sleep(random.uniform(0, min(2, 0.05 * 2 ** len(conflicts))))

    def create_all(self) -> None:
        """Create missing tables, for tests. Applications use Alembic."""
        with self.engine.begin() as conn:
            Base.metadata.create_all(conn)

    def dispose(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.dispose()
