"""Create, read, update and delete for any model. repository.py is its twin."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, nullcontext
from typing import Any

from sqlalchemy import delete, exc, inspect, select
from sqlalchemy.ext.asyncio import AsyncSession

from database.base import Base, by_key, checked_states
from database.context_async import DbContextAsync


class RepositoryAsync[Model: Base]:
    """The rows of one model.

    On a DbContextAsync each call is a transaction. On an AsyncSession the calls join
    its transaction. `options` are loader options.
    """

    model: type[Model]

    def __init__(self, db: DbContextAsync | AsyncSession) -> None:
        self.db = db

    def reading(self) -> AsyncSession | nullcontext[AsyncSession]:
        """Return the session for a query of your own."""
        if isinstance(self.db, DbContextAsync):
            return self.db.read_session()
        return nullcontext(self.db)

    @asynccontextmanager
    async def writing(self, *, immediate: bool = True) -> AsyncIterator[AsyncSession]:
        """Yield the session for a method of your own that writes.

        In the block use type(self)(session): self would begin other transactions.
        Pass immediate=False if it only writes.
        """
        if isinstance(self.db, DbContextAsync):
            async with self.db.transaction(immediate=immediate) as session:
                yield session
        else:
            await self.db.flush()  # raises if another task flushes
            yield self.db
            await self.db.flush()  # raises errors here, and sets new keys

    async def create(self, row: Model) -> Model:
        """Insert a new row with its children. Raises IntegrityError for a duplicate."""
        return (await self.create_many([row]))[0]

    async def create_many(self, rows: Iterable[Model]) -> list[Model]:
        """Insert all of these rows or none, and return them with their keys."""
        rows = list(rows)
        for row in rows:
            if inspect(row).has_identity:
                raise exc.InvalidRequestError(f"{row} is stored already: use update()")
        async with self.writing(immediate=False) as session:
            session.add_all(rows)
        return rows

    async def get_by_id(self, id: Any, *options: Any) -> Model | None:
        """Return the row with this primary key (a tuple if composite), or None."""
        async with self.reading() as session:
            if not options:
                return await session.get(self.model, id)
            # session.get() ignores options if it holds the object already.
            query = select(self.model).where(*by_key(inspect(self.model), id))
            return await session.scalar(query.options(*options))

    async def get_page(
        self, *options: Any, after_id: Any = None, limit: int = 100
    ) -> list[Model]:
        """Return up to `limit` rows after `after_id`, ordered by the primary key."""
        key, *others = inspect(self.model).primary_key
        if others:
            raise exc.InvalidRequestError("get_page() needs a key of one column")
        query = select(self.model).options(*options).order_by(key).limit(limit)
        if after_id is not None:
            query = query.where(key > after_id)
        async with self.reading() as session:
            return list((await session.scalars(query)).unique())

    async def update(self, row: Model) -> Model:
        """Store the changes of a row and of its children.

        Raises StaleDataError if the row was deleted or, with Versioned, changed.
        Raises InvalidRequestError if it is new, expired or read without its version.
        """
        async with self.writing(immediate=len(checked_states(row)) > 1) as session:
            session.add(row)
        return row

    async def delete(self, id: Any) -> bool:
        """Delete the row with this primary key, and return whether there was one."""
        mapper = inspect(self.model)
        if len(mapper.tables) > 1:
            raise exc.InvalidRequestError(f"use the repository of {mapper.base_mapper}")
        query = delete(self.model).where(*by_key(mapper, id))
        async with self.writing(immediate=False) as session:
            result: Any = await session.execute(query)
            return bool(result.rowcount)
