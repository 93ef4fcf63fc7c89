"""The async stack: an engine, its sessions and its transactions. context.py is the same without async and await."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from copy import copy
from threading import Lock
from typing import Any, Self

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, async_sessionmaker, create_async_engine
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


class DbContextAsync:
    """One engine and its sessions, made once and shared by all tasks.

    async with DbContextAsync("sqlite+aiosqlite:///example.db") as db:
        user = await UserRepositoryAsync(db).get_by_id(1)

    Further options go to create_async_engine and win over the defaults: echo=True shows the SQL.
    Raises ArgumentError for what is no URL or names a sync driver, ModuleNotFoundError for a missing driver.
    """

    def __init__(self, url: str | URL, **options: Any) -> None:
        url = check_url(url, is_async=True)
        self.engine = create_async_engine(url, **engine_options(url, options))
        listen(self.engine.sync_engine)
        # expire_on_commit=False: objects outlive their session
        self.sessionmaker = async_sessionmaker(self.engine, sync_session_class=DbSession, expire_on_commit=False)
        # for calls that only read
        readers = self.engine.execution_options(**read_options(url, options))
        self.read_sessionmaker = async_sessionmaker(readers, sync_session_class=DbSession, expire_on_commit=False)
        self._connection: AsyncConnection | None = None
        self._turn = Lock()

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
            tx._connection, tx._turn = connection, Lock()
            tx.sessionmaker = async_sessionmaker(
                connection,
                sync_session_class=TransactionSession,
                expire_on_commit=False,
                join_transaction_mode="create_savepoint",
                turn=tx._turn,
            )
            tx.read_sessionmaker = tx.sessionmaker  # what the transaction wrote, only the transaction can read
            yield tx
            take(tx._turn)  # and keep it: whoever comes after the end, or isn't done yet, is told

    async def run[T](self, work: Callable[[Self], Awaitable[T]], attempts: int = 5) -> T:
        """Run work(tx) in a transaction and return its result; run it again if the database answers "try again".

        That is a deadlock, a serialization failure, a row that changed since work read it, or a connection lost before
        COMMIT. So work may run several times: it reads what it needs itself, and does nothing that can't be undone.
        A connection lost during COMMIT is not repeated, since the work may be stored. The last error is raised as it is.

        async def rename(tx: DbContextAsync) -> None:
            ada = await UserRepositoryAsync(tx).get_by_id(1)
            ada.name = "Ada King"
            await UserRepositoryAsync(tx).update(ada)

        await db.run(rename)
        """
        attempt = (
            attempts if self._connection else 1
        )  # inside a transaction, it is the whole of it that has to run again
        while True:
            committing = False
            try:
                async with self.transaction() as tx:
                    result = await work(tx)
                    committing = True
                return result
            except (DBAPIError, StaleDataError) as error:
                if attempt >= attempts or not can_repeat(error, committing=committing):
                    raise
            await asyncio.sleep(random.uniform(0, 0.05 * 2**attempt))  # seconds
            attempt += 1

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator[AsyncConnection]:
        if self._connection is None:
            async with self.engine.begin() as connection:
                await connection.run_sync(begin_immediate)
                yield connection
        else:
            take(self._turn)
            try:
                async with self._connection.begin_nested():
                    yield self._connection
            finally:
                self._turn.release()
