"""Asynchronous database access. context.py is the same without async and await."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

from sqlalchemy import URL
from sqlalchemy.exc import InvalidRequestError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from database.base import Base
from database.engine import configure, engine_options, read_options
from database.transactions import close, is_retryable


class DbContextAsync:
    """An engine and its sessions, one per process. `options` go to create_engine()."""

    def __init__(self, url: str | URL, **options: Any) -> None:
        self.engine = create_async_engine(**engine_options(url, options))
        configure(self.engine.sync_engine)
        self.sessionmaker = async_sessionmaker(
            self.engine, expire_on_commit=False, close_resets_only=False
        )
        reading = self.engine.execution_options(**read_options(self.engine, options))
        self.read_session = async_sessionmaker(
            reading, autoflush=False, expire_on_commit=False, close_resets_only=False
        )

    @asynccontextmanager
    async def transaction(
        self, *, immediate: bool = True
    ) -> AsyncIterator[AsyncSession]:
        """Yield an AsyncSession. Commit at the end, roll back if the block raises.

        Raises InvalidRequestError if the block caught an error that prevents a commit.
        """
        conn = await self.engine.connect()
        session = self.sessionmaker(bind=conn, join_transaction_mode="control_fully")
        try:
            # Begin now. Two tasks that both begin later would collide.
            await session.connection(execution_options={"begin_immediate": immediate})
            yield session
            await session.commit()
        finally:
            await session.run_sync(close)

    async def run_transaction[T](
        self, work: Callable[[AsyncSession], Awaitable[T]], attempts: int = 20
    ) -> T:
        """Run work(session) in a transaction, and return its result.

        Retries after a deadlock, a serialization failure, a StaleDataError, or a
        connection that was lost before COMMIT. So `work` must be safe to repeat.
        """
        conflict: SQLAlchemyError | None = None
        for attempt in range(1, attempts + 1):
            try:
                async with self.transaction() as session:
                    return await work(session)
            except SQLAlchemyError as error:
                # `work` may use an object that the conflict has expired.
                if conflict and type(error) is InvalidRequestError:
                    raise conflict from error
                if attempt == attempts or not is_retryable(error):
                    raise
                conflict = error
            await asyncio.sleep(random.uniform(0, min(2, 0.05 * 2**attempt)))
        raise ValueError("attempts must be at least 1")

    async def create_all(self) -> None:
        """Create missing tables, for tests. Applications use Alembic."""
        async with self.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

    async def dispose(self) -> None:
        """Close the pooled connections."""
        await self.engine.dispose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.dispose()
