"""Asynchronous database access. context.py is its twin."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Self

from sqlalchemy import URL, exc
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from database.base import Base
from database.engine import begin, configure, engine_options, read_engine
from database.transactions import check_retry, close


class DbContextAsync:
    """One per process: an engine and its sessions. `options` go to create_engine()."""

    def __init__(self, url: str | URL, **options: Any) -> None:
        self.engine = create_async_engine(**engine_options(url, options))
        configure(self.engine.sync_engine)
        self.sessionmaker = async_sessionmaker(
            self.engine, expire_on_commit=False, close_resets_only=False
        )
        reading = read_engine(self.engine, options)
        self.read_session = partial(self.sessionmaker, bind=reading, autoflush=False)

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
            await session.run_sync(begin, immediate)
            yield session
            await session.commit()
        finally:
            await session.run_sync(close)

    async def run_transaction[T](
        self, work: Callable[[AsyncSession], Awaitable[T]], attempts: int = 20
    ) -> T:
        """Run work(session) in a transaction, and return its result.

        Retries after a deadlock, a serialization failure, a StaleDataError or a
        connection lost before COMMIT. So `work` must be safe to repeat.
        """
        conflicts: list[Exception] = []
        while True:
            try:
                async with self.transaction() as session:
                    return await work(session)
            except exc.SQLAlchemyError as error:
                check_retry(error, conflicts, attempts)
            await asyncio.sleep(random.uniform(0, min(2, 0.05 * 2 ** len(conflicts))))

    async def create_all(self) -> None:
        """Create missing tables, for tests. Applications use Alembic."""
        async with self.engine.begin() as conn:
            await conn.run_sync(Base.metadata.create_all)

    async def dispose(self) -> None:
        """Close the pooled connections."""
        await self.engine.dispose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.dispose()
