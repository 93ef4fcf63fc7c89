"""The async stack: an engine, its sessions and its transactions. context.py is the same without async and await."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Self

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from database.base import Base
from database.engine import READING, REPEATABLE, can_repeat, engine_options, set_up
from database.turn import Turn


class DbTransactionAsync:
    """What transaction() yields: calls on one session, which close_resets_only keeps from being used after the end."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        self._turn = Turn()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """Yield the transaction's session; raises InvalidRequestError while in use, after a failed call and the end."""
        with self._turn.call():
            yield self._session
            await self._session.flush()

    read_session = session  # what the transaction wrote, only the transaction itself can read

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Self]:
        """Yield an inner transaction, a savepoint: if its block raises, only the block's work is undone."""
        with self._turn.call(dooms=False):
            async with self._session.begin_nested(), type(self)(self._session).until_end() as inner:
                yield inner

    @asynccontextmanager
    async def until_end(self) -> AsyncIterator[Self]:
        """Yield the transaction; at the end of the block refuse new calls, and wait for the one under way."""
        connection = await self._session.connection()
        try:
            yield self
        finally:
            try:
                for _ in self._turn.end():
                    await asyncio.sleep(0.01)
            finally:
                if not self._turn.ended:  # a call that never ends, or the wait was cancelled: this makes COMMIT raise
                    await connection.invalidate()
        self._turn.check(self._turn.ended and self._session.in_transaction() and self._session.is_active)


class DbContextAsync(AbstractAsyncContextManager["DbContextAsync"]):
    """One engine and its sessions, made once and shared by all tasks. The options go to create_async_engine.

    async with DbContextAsync("sqlite+aiosqlite:///example.db") as db:
        acme = await CompanyRepositoryAsync(db).get_by_id(1)
    """

    def __init__(self, url: str | URL, **options: Any) -> None:
        self.engine = create_async_engine(**engine_options(url, options, is_async=True))
        self.sessionmaker = async_sessionmaker(self.engine, expire_on_commit=False)  # objects outlive their session
        self.dispose = self.engine.dispose  # closes the pooled connections; a context used after that opens new ones
        readers = set_up(self.engine.sync_engine, options)
        self.read_session = async_sessionmaker(self.engine, sync_session_class=readers, **READING)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """Yield a new session: commits at the end of the block, rolls back on any exception."""
        async with self.sessionmaker() as session, session.begin():
            yield session
            if not session.is_active:  # a failed flush was caught: begin() alone says nothing
                await session.commit()  # raises PendingRollbackError

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[DbTransactionAsync]:
        """Yield a context whose calls share one transaction, all stored or none. It belongs to one task.

        async with db.transaction() as tx:
            await CompanyRepositoryAsync(tx).create(acme)

        A call that raises dooms it, caught or not; what may fail goes into an inner one, tx.transaction().
        """
        async with self.sessionmaker(close_resets_only=False) as session, session.begin():
            await session.connection(execution_options={"begin_immediate": True})
            async with DbTransactionAsync(session).until_end() as tx:
                yield tx

    async def run[T](self, work: Callable[[DbTransactionAsync], Awaitable[T]], attempts: int = 10) -> T:
        """Return work(tx), run in a transaction, and run again when the database says "conflict, try again".

        That is a deadlock, serialization failure, stale row, or connection lost before COMMIT: work must be repeatable.
        """
        committing = False
        try:
            async with self.transaction() as tx:
                result = await work(tx)
                committing = True
            return result
        except REPEATABLE as error:
            if attempts <= 1 or not can_repeat(error, committing=committing):
                raise
        await asyncio.sleep(random.uniform(0, 1 / attempts))  # seconds, ever more; by chance, so that rivals part
        return await self.run(work, attempts - 1)

    async def create_all(self) -> None:
        """Create the missing tables. For tests and scripts: an application leaves its schema to Alembic."""
        async with self.engine.execution_options(begin_immediate=True).begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

    async def drop_all(self) -> None:
        """Drop the tables of the models and all that is in them."""
        async with self.engine.execution_options(begin_immediate=True).begin() as connection:
            await connection.run_sync(Base.metadata.drop_all)

    async def __aexit__(self, *_: object) -> None:
        await self.dispose()
