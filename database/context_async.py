"""Asynchronous database access. context.py is the same without async and await."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm.exc import StaleDataError

from database.base import Base
from database.engine import configure, engine_options
from database.session import ReadSession, commit, is_retryable, read_options, roll_back


class DbContextAsync:
    """An engine and its sessions. Make one per process, and share it between tasks.

    async with DbContextAsync("sqlite+aiosqlite:///example.db") as db:
        user = await UserRepositoryAsync(db).get_by_id(1)

    Keyword arguments go to create_async_engine(). They replace the defaults.
    """

    def __init__(self, url: str | URL, **options: Any) -> None:
        self.engine = create_async_engine(**engine_options(url, options))
        configure(self.engine.sync_engine)
        # Objects stay readable after a commit. A closed session can't be used again.
        self.sessionmaker = async_sessionmaker(
            self.engine, expire_on_commit=False, close_resets_only=False
        )
        self.read_sessionmaker = async_sessionmaker(
            self.engine.execution_options(
                **read_options(self.engine.sync_engine, options)
            ),
            sync_session_class=ReadSession,
            autoflush=False,
            expire_on_commit=False,
            close_resets_only=False,
        )

    def read_session(self) -> AsyncSession:
        """Return an AsyncSession for reading.

        A flush, INSERT, UPDATE or DELETE raises InvalidRequestError.
        """
        return self.read_sessionmaker()

    @asynccontextmanager
    async def transaction(
        self, *, begin_immediate: bool = True
    ) -> AsyncIterator[AsyncSession]:
        """Yield an AsyncSession. Commit at the end of the block, roll back if it raises.

        Raises InvalidRequestError if the block caught an error that PostgreSQL or the
        session can't commit after. Use session.begin_nested() around what may fail.
        begin_immediate=False saves SQLite two statements if the block does not read.
        """
        # The connection is closed even if another task keeps the session from closing.
        async with self.engine.connect() as connection:
            await connection.execution_options(begin_immediate=begin_immediate)
            async with self.sessionmaker(bind=connection) as session:
                try:
                    await (
                        session.connection()
                    )  # begin now, not with the first statement
                    yield session
                    await session.run_sync(commit)
                except BaseException:
                    await session.run_sync(roll_back)
                    raise

    async def run_transaction[T](
        self, work: Callable[[AsyncSession], Awaitable[T]], attempts: int = 20
    ) -> T:
        """Return the result of work(session), run in a transaction.

        The transaction is retried after a deadlock, a serialization failure, a
        StaleDataError or a connection that was lost before COMMIT. So `work` must be
        safe to repeat. After the last attempt its error is raised.
        """
        for attempt in range(1, attempts + 1):
            committing = False
            try:
                async with self.transaction() as session:
                    result = await work(session)
                    await session.flush()
                    committing = True
                return result
            except (DBAPIError, StaleDataError) as error:
                if attempt == attempts or not is_retryable(
                    error, committing=committing
                ):
                    raise
            # Exponential backoff with full jitter, so that rivals do not meet again.
            await asyncio.sleep(random.uniform(0, min(2, 0.05 * 2**attempt)))
        raise ValueError("attempts must be at least 1")

    async def create_all(self) -> None:
        """Create the missing tables. This is for tests: applications use Alembic."""
        async with self.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

    async def dispose(self) -> None:
        """Close the pooled connections."""
        await self.engine.dispose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.dispose()
