"""The sync and the async stack behind one face, so that a test is written once: async, whatever is beneath."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

from sqlalchemy import URL, Connection, Engine, Executable, QueuePool, event, make_url

from database.context import DbContext
from database.context_async import DbContextAsync
from repositories.user_repository import UserRepository
from repositories.user_repository_async import UserRepositoryAsync


class Awaitable:
    """An object of the sync stack whose methods are awaited."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.target, name)
        if not callable(value) or name == "sessionmaker":
            return value

        async def call(*args: Any, **options: Any) -> Any:
            return value(*args, **options)

        return call


class AwaitableContext(Awaitable):
    async def __aenter__(self) -> "AwaitableContext":
        return AwaitableContext(self.target.__enter__())

    async def __aexit__(self, *error: object) -> None:
        self.target.__exit__(*error)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator["AwaitableContext"]:
        with self.target.transaction() as tx:
            yield AwaitableContext(tx)


class Stack:
    """One way to reach one database: its URL, and whether through the sync or the async stack."""

    def __init__(self, url: str | URL, *, is_async: bool) -> None:
        self.url = make_url(url).render_as_string(hide_password=False)
        self.is_async = is_async

    def context(self, **options: Any) -> DbContextAsync:
        if self.is_async:
            return DbContextAsync(self.url, **options)
        return cast(DbContextAsync, AwaitableContext(DbContext(self.url, **options)))

    def users(self, db: DbContextAsync) -> UserRepositoryAsync:
        if self.is_async:
            return UserRepositoryAsync(db)
        return cast(UserRepositoryAsync, Awaitable(UserRepository(cast(Awaitable, db).target)))


def sync_engine(db: DbContextAsync) -> Engine:
    return getattr(db.engine, "sync_engine", cast(Engine, db.engine))


def pool(db: DbContextAsync) -> QueuePool:
    return cast(QueuePool, sync_engine(db).pool)


@contextmanager
def statements(db: DbContextAsync) -> Iterator[list[str]]:
    """Collect the statements that reach the database."""
    seen: list[str] = []

    def see(_connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    event.listen(sync_engine(db), "before_cursor_execute", see)
    try:
        yield seen
    finally:
        event.remove(sync_engine(db), "before_cursor_execute", see)


async def scalars(db: DbContextAsync, query: Executable) -> list[Any]:
    """Run a query of the test's own, through the session that the context hands out."""
    if isinstance(db, DbContextAsync):
        async with db.sessionmaker.begin() as session:
            return list(await session.scalars(query))
    with cast(Any, db).sessionmaker.begin() as session:
        return list(session.scalars(query))
