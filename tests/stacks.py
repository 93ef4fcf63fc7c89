"""The sync and the async stack behind one face, so that a test is written once: async, whatever is beneath."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

from sqlalchemy import URL, Connection, Engine, Executable, QueuePool, event, make_url

from database.base import Base
from database.context import DbContext
from database.context_async import DbContextAsync
from repositories.repository import Repository
from repositories.repository_async import RepositoryAsync
from repositories.user_repository import UserRepository
from repositories.user_repository_async import UserRepositoryAsync

SYNC = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}


class Awaitable:
    """An object of the sync stack whose methods are awaited, and whose with blocks are async with blocks."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.target, name)
        if name in ("session", "read_session", "transaction", "begin", "begin_nested"):
            return lambda: Awaitable(value())
        if not callable(value) or name in ("sessionmaker", "add", "add_all"):
            return value  # these are not awaited in the async stack either

        async def call(*args: Any, **options: Any) -> Any:
            return value(*args, **options)

        return call

    async def __aenter__(self) -> "Awaitable":
        return Awaitable(cast(AbstractContextManager[Any], self.target).__enter__())

    async def __aexit__(self, *error: Any) -> bool | None:
        return cast(AbstractContextManager[Any], self.target).__exit__(*error)


class Stack:
    """One way to reach one database: its URL, and whether through the sync or the async stack."""

    def __init__(self, url: str | URL, *, is_async: bool) -> None:
        self.url = make_url(url).render_as_string(hide_password=False)
        self.is_async = is_async

    def context(self, **options: Any) -> DbContextAsync:
        if self.is_async:
            return DbContextAsync(self.url, **options)
        return cast(DbContextAsync, Awaitable(DbContext(self.url, **options)))

    def users(self, db: Any) -> UserRepositoryAsync:
        """The users of a context or of a transaction."""
        if self.is_async:
            return UserRepositoryAsync(db)
        return cast(UserRepositoryAsync, Awaitable(UserRepository(db.target)))

    def rows[Row: Base](self, db: Any, model: type[Row]) -> RepositoryAsync[Row]:
        """The rows of a model of one's own."""
        base: type = RepositoryAsync if self.is_async else Repository
        repository: Any = type("Rows", (base,), {"model": model})(db if self.is_async else db.target)
        return cast(RepositoryAsync[Row], repository if self.is_async else Awaitable(repository))

    def sync(self, **options: Any) -> DbContext:
        """The same database through its sync driver."""
        url = make_url(self.url)
        return DbContext(url.set(drivername=SYNC[url.get_backend_name()]), **options)


def sync_engine(db: DbContextAsync) -> Engine:
    return getattr(db.engine, "sync_engine", cast(Engine, db.engine))


def pool(db: DbContextAsync) -> QueuePool:
    return cast(QueuePool, sync_engine(db).pool)


async def scalars(db: Any, query: Executable) -> list[Any]:
    """What a query of one's own returns, in a context or a transaction."""
    async with db.session() as session:
        return list(await session.scalars(query))


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
