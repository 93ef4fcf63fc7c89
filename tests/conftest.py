"""The databases of the tests: a SQLite file, a PostgreSQL that comes as a package, and the MariaDB installed here."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import pytest
from sqlalchemy import delete

from database.context import DbContext
from database.context_async import DbContextAsync
from database.models import UserDb
from repositories.user_repository_async import UserRepositoryAsync
from tests.servers import GivenMariaDB, MariaDB, Postgres, Server
from tests.stacks import SYNC as SYNC
from tests.stacks import Stack

# every driver, and whether it is reached through the async stack
DRIVERS = {
    "sqlite": ("sqlite", False),
    "aiosqlite": ("sqlite+aiosqlite", True),
    "psycopg": ("postgresql+psycopg", False),
    "asyncpg": ("postgresql+asyncpg", True),
    "psycopg_async": ("postgresql+psycopg", True),
    "pymysql": ("mysql+pymysql", False),
    "aiomysql": ("mysql+aiomysql", True),
    "asyncmy": ("mysql+asyncmy", True),
}
NO_MARIADB = (
    "no MariaDB: install its server (apt-get install mariadb-server, brew install mariadb), or set TEST_MARIADB_URL to "
    "mysql://user:password@host:port/ of one where databases may be created"
)


def missing(reason: str) -> NoReturn:
    """Skip the test; or fail it where every database has to be there."""
    if os.environ.get("TEST_EVERY_DATABASE"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def running(server_class: type[Server]) -> Iterator[Server]:
    if issubclass(server_class, MariaDB) and not MariaDB.program("mariadbd"):
        missing(NO_MARIADB)
    with TemporaryDirectory(prefix="db-") as folder:
        server = server_class(Path(folder) / "data")
        try:
            server.start()
            yield server
        finally:
            server.kill()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    with running(Postgres) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[Server]:
    if url := os.environ.get("TEST_MARIADB_URL"):
        yield GivenMariaDB(url)
    else:
        with running(MariaDB) as server:
            yield server


@pytest.fixture
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """A function that returns the URL of a new, empty database for a driver such as postgresql+asyncpg."""

    def make(driver: str) -> str:
        if driver.startswith("sqlite"):
            return f"{driver}:///{tmp_path}/{os.urandom(4).hex()}.db"
        server: Server = request.getfixturevalue("postgres" if driver.startswith("postgres") else "mariadb")
        return server.url(driver, server.create_database())

    return make


@pytest.fixture(scope="session")
def kept() -> Iterator[dict[str, DbContext]]:
    """For each server, a database with its tables, kept for the whole run: creating tables is slow there."""
    contexts: dict[str, DbContext] = {}
    yield contexts
    for db in contexts.values():
        db.dispose()


def empty(db: DbContext) -> None:
    with db.session() as session:
        session.execute(delete(UserDb))


@pytest.fixture(params=DRIVERS)
def stack(request: pytest.FixtureRequest, kept: dict[str, DbContext], new_url: Callable[[str], str]) -> Stack:
    """Each driver in turn, with the tables created and empty."""
    driver, is_async = DRIVERS[request.param]
    backend = driver.partition("+")[0]
    if backend == "sqlite":
        with DbContext(new_url("sqlite")) as db:
            db.create_all()
    else:
        if backend not in kept:
            kept[backend] = DbContext(new_url(SYNC[backend]))
            kept[backend].create_all()
        db = kept[backend]
        empty(db)
    return Stack(db.engine.url.set(drivername=driver), is_async=is_async)


@pytest.fixture
async def db(stack: Stack) -> AsyncIterator[DbContextAsync]:
    async with stack.context() as db:
        yield db


@pytest.fixture
def users(stack: Stack, db: DbContextAsync) -> UserRepositoryAsync:
    return stack.users(db)
