"""The async stack: an engine, its sessions and its transactions. context.py is the same without async and await."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from copy import copy
from typing import Any, Self

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm.exc import StaleDataError

from database import shared
from database.models import Base


class DbContextAsync:
    """One engine and its sessions, made once and shared by all tasks.

    async with DbContextAsync("sqlite+aiosqlite:///example.db") as db:
        user = await UserRepositoryAsync(db).get_by_id(1)

    Further options go to create_async_engine and win over the defaults: echo=True shows the SQL.
    Raises ArgumentError for what is no URL or names a sync driver, ModuleNotFoundError for a missing driver.
    """

    def __init__(self, url: str | URL, **options: Any) -> None:
        url = shared.check_url(url, is_async=True)
        self.engine = create_async_engine(url, **shared.engine_options(url, options))
        shared.listen(self.engine.sync_engine)
        self.sessionmaker = sessions(self.engine)
        self.read_sessionmaker = sessions(self.engine.execution_options(**shared.read_options(url, options)))
        self._connection: AsyncConnection | None = None
        self._turn = shared.Turn()

    async def create_all(self) -> None:
        """Create the missing tables. For tests and scripts: an application leaves its schema to Alembic."""
        async with self._begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

    async def drop_all(self) -> None:
        """Drop the tables of the models and all that is in them."""
        async with self._begin() as connection:
            await connection.run_sync(Base.metadata.drop_all)

    async def dispose(self) -> None:
        """Close the pooled connections. A context used after that opens new ones."""
        await self.engine.dispose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.dispose()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Self]:
        """Yield a context whose repositories share one transaction: all or nothing. It belongs to one task.

        async with db.transaction() as tx:
            await UserRepositoryAsync(tx).create(ada)
            await UserRepositoryAsync(tx).delete(7)

        A call that raises undoes only itself if you catch it. A transaction in a transaction is a savepoint.
        """
        async with self._begin() as connection:
            tx = copy(self)
            tx._connection, tx._turn = connection, shared.Turn()
            tx.sessionmaker = sessions(connection, join_transaction_mode="create_savepoint", turn=tx._turn)
            tx.read_sessionmaker = tx.sessionmaker  # what it wrote, only the transaction itself can read
            try:
                yield tx
            finally:
                if late := tx._turn.is_taken_by_another():  # its call would run into our ROLLBACK
                    try:
                        await asyncio.to_thread(tx._turn.lock.acquire, timeout=30)
                    except BaseException:  # cancelled while it waits
                        await connection.invalidate()
                        raise
            if late:
                raise InvalidRequestError(shared.IN_USE)
            tx._turn.take()  # and keep it: who comes after the end is told

    async def run[T](self, work: Callable[[Self], Awaitable[T]], attempts: int = 5) -> T:
        """Return work(tx), run in a transaction, and run again when the database says "conflict, try again".

        That is a deadlock, a serialization failure, a row changed since work read it, or a connection lost before
        COMMIT. So work must be repeatable: it reads what it changes, and does nothing outside the database. It is not
        repeated after a connection lost during COMMIT: it may be stored. The last error comes out as it was.

        await db.run(lambda tx: UserRepositoryAsync(tx).delete(7))
        """
        attempt = 1
        while True:
            committing = False
            try:
                async with self.transaction() as tx:
                    result = await work(tx)
                    committing = True
                return result
            except (DBAPIError, StaleDataError) as error:
                # inside a transaction, the whole of it has to run again
                if attempt >= attempts or self._connection or not shared.can_repeat(error, committing=committing):
                    raise
            await asyncio.sleep(random.uniform(0, min(0.05 * 2**attempt, 1)))  # seconds; by chance, so that rivals part
            attempt += 1

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator[AsyncConnection]:
        if self._connection is None:
            async with self.engine.begin() as connection:
                await connection.run_sync(shared.begin_immediate)
                yield connection
        else:
            self._turn.take()
            try:
                async with self._connection.begin_nested():
                    yield self._connection
            finally:
                self._turn.lock.release()


def sessions(bind: AsyncEngine | AsyncConnection, **options: Any) -> async_sessionmaker[AsyncSession]:
    # expire_on_commit=False: objects outlive their session
    return async_sessionmaker(bind, sync_session_class=shared.DbSession, expire_on_commit=False, **options)
