"""The databases of the tests: SQLite files, PostgreSQL from a wheel, and MariaDB."""

import os
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest

from database.context import DbContext
from tests.servers import MariaDB, Postgres, Server, running
from tests.twins import write_synchronous_tests

DRIVERS = ["sqlite", "postgresql+psycopg", "mysql+pymysql"]
SQLITE, SERVERS, MYSQL = DRIVERS[:1], DRIVERS[1:], DRIVERS[2:]
SQLITE_ASYNC, MYSQL_ASYNC = ["sqlite+aiosqlite"], ["mysql+aiomysql", "mysql+asyncmy"]
SERVERS_ASYNC = ["postgresql+asyncpg", "postgresql+psycopg", *MYSQL_ASYNC]
DRIVERS_ASYNC = [*SQLITE_ASYNC, *SERVERS_ASYNC]
SYNC_DRIVERS = dict(zip(["sqlite", "postgresql", "mysql"], DRIVERS, strict=True))
type NewUrl = Callable[[str], str]


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # once, not in each process of pytest-xdist
        write_synchronous_tests()
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # it slows commands down


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.reverse()  # the longest tests, which are in the last files, start first


def missing(reason: str) -> NoReturn:
    """Skip the test. Fail it where every database has to be there."""
    if os.environ.get("TEST_EVERY_DATABASE"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    with running(Postgres) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[Server]:
    if not MariaDB.program("mariadbd"):
        missing("MariaDB's server is missing: apt-get install mariadb-server")
    with running(MariaDB) as server:
        yield server


@pytest.fixture(scope="session")
def new_url(request: Any, tmp_path_factory: Any) -> NewUrl:
    """Return a function that makes an empty database and returns its URL."""

    def make(driver: str) -> str:
        if driver.startswith("sqlite"):
            return f"{driver}:///{tmp_path_factory.mktemp('sqlite')}/new.db"
        name = "postgres" if driver.startswith("postgres") else "mariadb"
        server: Server = request.getfixturevalue(name)
        return server.url(driver, server.create_database())

    return make


@pytest.fixture(scope="session")
def kept() -> Iterator[dict[str, DbContext]]:
    """Keep one database with tables for each backend. Creating tables is slow."""
    contexts: dict[str, DbContext] = {}
    yield contexts
    for db in contexts.values():
        db.dispose()
