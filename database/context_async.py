"""The async stack: an engine, its sessions and its transactions. context.py is the same without async and await."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import copy
from threading import Lock
from typing import Any, Self

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncConnection, async_sessionmaker, create_async_engine

from database.engine import DbSession, TransactionSession, begin_immediate, check_url, engine_options, listen, take
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
            yield tx
            take(tx._turn)  # and keep it: whoever comes after the end, or isn't done yet, is told

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
