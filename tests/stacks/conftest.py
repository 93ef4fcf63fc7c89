"""Fixtures for tests that run with every driver."""

from collections.abc import AsyncIterator, Callable

import pytest

from database.base import Base
from database.context import DbContext
from database.context_async import DbContextAsync
from repositories.user_repository_async import UserRepositoryAsync
from tests.conftest import DRIVERS_ASYNC, SYNC_DRIVERS
from tests.models import Own


@pytest.fixture(params=DRIVERS_ASYNC)
def url(
    request: pytest.FixtureRequest,
    new_url: Callable[[str], str],
    kept: dict[str, DbContext],
) -> str:
    """Return the URL of a database with empty tables, for each driver in turn."""
    backend = request.param.partition("+")[0]
    if backend not in kept or backend == "sqlite":
        kept[backend] = DbContext(new_url(SYNC_DRIVERS[backend]))
        with kept[backend].engine.begin() as connection:
            Base.metadata.create_all(connection)
            Own.metadata.create_all(connection)
    else:
        with kept[backend].engine.begin() as connection:
            for metadata in (Base.metadata, Own.metadata):
                for table in reversed(metadata.sorted_tables):
                    connection.execute(table.delete())
    url = kept[backend].engine.url.set(drivername=request.param)
    return url.render_as_string(hide_password=False)


@pytest.fixture
async def db(url: str) -> AsyncIterator[DbContextAsync]:
    async with DbContextAsync(url) as db:
        yield db


@pytest.fixture
def users(db: DbContextAsync) -> UserRepositoryAsync:
    return UserRepositoryAsync(db)
