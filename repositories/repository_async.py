"""Create, read, update and delete for any model, in async code. repository.py is the same without async and await."""

from collections.abc import Iterable
from typing import Any, cast

from sqlalchemy import CursorResult, Select
from sqlalchemy.orm.interfaces import ORMOption

from database.base import MAX_ID, Base, check_new, check_read
from database.context_async import DbContextAsync, DbTransactionAsync
from repositories import statements


class RepositoryAsync[Row: Base]:
    """The rows of one model; each call is a transaction of its own, or a part of yours.

    class CompanyRepositoryAsync(RepositoryAsync[Company]):
        model = Company

    acme = await CompanyRepositoryAsync(db).create(Company(name="Acme"))

    Options are SQLAlchemy loader options: they say which relationships are loaded, too.
    """

    model: type[Row]

    def __init__(self, db: DbContextAsync | DbTransactionAsync) -> None:
        self.db = db

    async def create(self, row: Row) -> Row:
        """Store a new row and its children, and return it with its id. Raises IntegrityError for a duplicate."""
        return (await self.create_many([row]))[0]

    async def create_many(self, rows: Iterable[Row]) -> list[Row]:
        """Store all of these new rows or none, and return them with their ids."""
        rows = list(rows)
        async with self.db.session() as session:
            check_new(*rows)
            session.add_all(rows)
        return rows

    async def get_by_id(self, id: int, *options: ORMOption) -> Row | None:
        """Return the row, or None if there is none."""
        rows = await self.read(statements.by_id(self.model), *options, id=id) if abs(id) <= MAX_ID else []
        return next(iter(rows), None)

    async def get_page(self, *options: ORMOption, after_id: int = 0, limit: int = 100) -> list[Row]:
        """Return up to limit rows with an id beyond after_id, in id order; every page costs the same, however far."""
        if limit < 1:
            raise ValueError("limit must be at least 1")
        after_id = max(-MAX_ID, min(after_id, MAX_ID))
        return await self.read(statements.page(self.model), *options, after_id=after_id, limit=min(limit, MAX_ID))

    async def update(self, row: Row) -> Row:
        """Write changes, children's too. Raises StaleDataError if others were faster, InvalidRequestError if spent."""
        async with self.db.session() as session:
            check_read(row)  # in here: what is refused is not attached, and not stored by the commit
            session.add(row)
        return row

    async def delete(self, id: int) -> bool:
        """Delete the row (if inherited, in its own table) and what ON DELETE CASCADE does; return if there was one."""
        if abs(id) > MAX_ID:
            return False
        async with self.db.session() as session:
            result = await session.execute(statements.delete_by_id(self.model), {"id": id})
            return cast(CursorResult[Any], result).rowcount > 0

    async def read(self, query: Select[Any], *options: ORMOption, **values: Any) -> list[Row]:
        """Return the rows of a query of your own for the model, as the database has them now, also in a transaction."""
        async with self.db.read_session() as session:
            query = query.options(*options) if options else query  # the same statement keeps its cache key
            rows = await session.scalars(query, values, execution_options={"populate_existing": True})
            return list(rows.unique())
