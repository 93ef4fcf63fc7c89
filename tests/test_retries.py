"""run_transaction() repeats what may succeed, and nothing else."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from database.context import DbContext
from database.context_async import DbContextAsync
from tests.models import Counter
from tests.servers import free_port
from tests.test_clusters import create_tables

type NewUrl = Callable[[str], str]
ON_SERVERS = ["postgresql+asyncpg", "postgresql+psycopg", "mysql+aiomysql"]


async def increment(session: AsyncSession) -> None:
    counter = await session.get_one(Counter, 1)
    counter.value += 1


@pytest.mark.parametrize("driver", ON_SERVERS)
async def test_ten_tasks_change_one_row(new_url: NewUrl, driver: str) -> None:
    url = create_tables(new_url(driver))
    async with asyncio.timeout(90), DbContextAsync(url) as db:

        async def work() -> None:
            for _ in range(18):
                await db.run_transaction(increment)

        await asyncio.gather(*(work() for _ in range(10)))
        async with db.read_session() as session:
            assert (await session.get_one(Counter, 1)).value == 181


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "mysql+pymysql"])
def test_ten_threads_change_one_row(new_url: NewUrl, driver: str) -> None:
    def increment(session: Session) -> None:
        session.get_one(Counter, 1).value += 1

    with DbContext(create_tables(new_url(driver))) as db:
        with ThreadPoolExecutor(10) as threads:
            results = [
                threads.submit(db.run_transaction, increment) for _ in range(180)
            ]
        for result in results:
            result.result()
        with db.read_session() as session:
            assert session.get_one(Counter, 1).value == 181


@pytest.mark.parametrize("driver", ON_SERVERS)
async def test_what_cannot_succeed_is_tried_once(new_url: NewUrl, driver: str) -> None:
    attempts: list[object] = []

    async def create_again(session: AsyncSession) -> None:
        attempts.append(session)
        session.add(Counter(id=1, value=0))

    url = create_tables(new_url(driver))
    async with DbContextAsync(url) as db:
        with pytest.raises(IntegrityError):
            await db.run_transaction(create_again)
    assert len(attempts) == 1

    nobody_listens = make_url(url).set(port=free_port())
    async with DbContextAsync(nobody_listens) as db:

        @event.listens_for(db.engine.sync_engine, "do_connect")
        def count(*args: object) -> None:
            attempts.append(args)

        with pytest.raises((DBAPIError, OSError)):
            await db.run_transaction(increment)
    assert len(attempts) == 2
