"""Fixtures for the tests that run with every driver."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from database.base import Base
from database.context import DbContext
from tests.conftest import DRIVERS_ASYNC, SYNC_DRIVERS, NewUrl
from tests.models import Own
from tests.stacks.helpers import Db, Users


@pytest.fixture(params=DRIVERS_ASYNC)
def url(request: Any, new_url: NewUrl, kept: dict[str, DbContext]) -> str:
    """Return the URL of a database with empty tables, for each driver in turn."""
    backend = request.param.partition("+")[0]
    is_new = backend not in kept
    if is_new:
        kept[backend] = DbContext(new_url(SYNC_DRIVERS[backend]))
    with kept[backend].engine.begin() as connection:
        for metadata in (Base.metadata, Own.metadata):
            if is_new:
                metadata.create_all(connection)
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())
    url = kept[backend].engine.url.set(drivername=request.param)
    return url.render_as_string(hide_password=False)


@pytest.fixture
async def db(url: str) -> AsyncIterator[Db]:
    async with Db(url) as db:
        yield db


@pytest.fixture
def users(db: Db) -> Users:
    return Users(db)
