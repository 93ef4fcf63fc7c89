"""Create, read, update and delete for any model. repository_async.py is its twin."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from sqlalchemy import delete, exc, inspect, select
from sqlalchemy.orm import Session

from database.base import Base, by_key, checked_states
from database.context import DbContext


class Repository[Model: Base]:
    """The rows of one model.

    On a DbContext each call is a transaction. On a Session the calls join
    its transaction. `options` are loader options.
    """

    model: type[Model]

    def __init__(self, db: DbContext | Session) -> None:
        self.db = db

    def reading(self) -> Session | nullcontext[Session]:
        """Return the session for a query of your own."""
        if isinstance(self.db, DbContext):
            return self.db.read_session()
        return nullcontext(self.db)

    @contextmanager
    def writing(self, *, immediate: bool = True) -> Iterator[Session]:
        """Yield the session for a method of your own that writes.

        In the block use type(self)(session): self would begin other transactions.
        Pass immediate=False if it only writes.
        """
        if isinstance(self.db, DbContext):
            with self.db.transaction(immediate=immediate) as session:
                yield session
        else:
            self.db.flush()  # raises if another task flushes
            yield self.db
            self.db.flush()  # raises errors here, and sets new keys

    def create(self, row: Model) -> Model:
        """Insert a new row with its children. Raises IntegrityError for a duplicate."""
        return self.create_many([row])[0]

    def create_many(self, rows: Iterable[Model]) -> list[Model]:
        """Insert all of these rows or none, and return them with their keys."""
        rows = list(rows)
        for row in rows:
            if inspect(row).has_identity:
                raise exc.InvalidRequestError(f"{row} is stored already: use update()")
        with self.writing(immediate=False) as session:
            session.add_all(rows)
        return rows

    def get_by_id(self, id: Any, *options: Any) -> Model | None:
        """Return the row with this primary key (a tuple if composite), or None."""
        with self.reading() as session:
            if not options:
                return session.get(self.model, id)
            # session.get() ignores options if it holds the object already.
            query = select(self.model).where(*by_key(inspect(self.model), id))
            return session.scalar(query.options(*options))

    def get_page(
        self, *options: Any, after_id: Any = None, limit: int = 100
    ) -> list[Model]:
        """Return up to `limit` rows after `after_id`, ordered by the primary key."""
        key, *others = inspect(self.model).primary_key
        if others:
            raise exc.InvalidRequestError("get_page() needs a key of one column")
        query = select(self.model).options(*options).order_by(key).limit(limit)
        if after_id is not None:
            query = query.where(key > after_id)
        with self.reading() as session:
            return list(session.scalars(query).unique())

    def update(self, row: Model) -> Model:
        """Store the changes of a row and of its children.

        Raises StaleDataError if the row was deleted or, with Versioned, changed.
        Raises InvalidRequestError if it is new, expired or read without its version.
        """
        with self.writing(immediate=len(checked_states(row)) > 1) as session:
            session.add(row)
        return row

    def delete(self, id: Any) -> bool:
        """Delete the row with this primary key, and return whether there was one."""
        mapper = inspect(self.model)
        if len(mapper.tables) > 1:
            raise exc.InvalidRequestError(f"use the repository of {mapper.base_mapper}")
        query = delete(self.model).where(*by_key(mapper, id))
        with self.writing(immediate=False) as session:
            result: Any = session.execute(query)
            return bool(result.rowcount)
