"""Fixtures for the tests that run with every driver."""

from collections.abc import AsyncIterator, Callable

import pytest

from database.base import Base
from database.context import DbContext
from database.context_async import DbContextAsync as Db
from repositories.user_repository_async import UserRepositoryAsync as Users
from tests.conftest import DRIVERS_ASYNC, SYNC_DRIVERS
from tests.models import Own


def create_tables(db: DbContext) -> None:
    with db.engine.begin() as connection:
        Base.metadata.create_all(connection)
        Own.metadata.create_all(connection)


def empty_tables(db: DbContext) -> None:
    with db.engine.begin() as connection:
        for metadata in (Base.metadata, Own.metadata):
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())


@pytest.fixture(params=DRIVERS_ASYNC)
def url(
    request: pytest.FixtureRequest,
    new_url: Callable[[str], str],
    kept: dict[str, DbContext],
) -> str:
    """Return the URL of a database with empty tables, for each driver in turn."""
    backend = request.param.partition("+")[0]
    if backend == "sqlite":
        with DbContext(new_url("sqlite")) as db:
            create_tables(db)
    elif backend in kept:
        db = kept[backend]
        empty_tables(db)
    else:
        kept[backend] = db = DbContext(new_url(SYNC_DRIVERS[backend]))
        create_tables(db)
    url = db.engine.url.set(drivername=request.param)
    return url.render_as_string(hide_password=False)


@pytest.fixture
async def db(url: str) -> AsyncIterator[Db]:
    async with Db(url) as db:
        yield db


@pytest.fixture
def users(db: Db) -> Users:
    return Users(db)
