"""The same code on clusters: a write is stored everywhere or told, and run repeats what lost against another node.

No acknowledged write, which is one whose call returned, is ever lost. A call that raised may have stored its user or
not, if the connection broke while COMMIT was under way.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from database.context import DbContext
from tests.clusters import GaleraNode, galera_cluster, wait_until
from tests.conftest import DRIVERS, missing
from tests.servers import Server
from tests.stacks import Stack
from tests.test_faults import MYSQL, create, run

pytestmark = pytest.mark.cluster

NO_GALERA = "no Galera: install MariaDB's server with it (apt-get install mariadb-server galera-4 rsync)"
WAIT = "?init_command=SET+wsrep_sync_wait=15"  # a node then answers when it has what the others had by now


@pytest.fixture(scope="module")
def galera() -> Iterator[list[GaleraNode]]:
    if not (GaleraNode.provider() and GaleraNode.program("mariadbd") and GaleraNode.program("rsync")):
        missing(NO_GALERA)
    with galera_cluster() as nodes:
        yield nodes


def stack_of(name: str, url: str) -> Stack:
    driver, is_async = DRIVERS[name]
    return Stack(driver + url.removeprefix(url.partition(":")[0]), is_async=is_async)


def new_tables(server: Server, driver: str) -> str:
    """Return the name of a new database with the tables."""
    database = server.create_database()
    with DbContext(server.url(driver, database)) as db:
        db.create_all()
    return database


def names(url: str) -> list[str]:
    with DbContext(url) as db, db.session() as session:
        return list(session.scalars(text("SELECT name FROM users")))


class Writer:
    """Stores one user after the other, and keeps account of those that were acknowledged."""

    def __init__(self, number: int, stack: Stack) -> None:
        self.number, self.stack, self.stopped = number, stack, False
        self.acknowledged, self.errors = list[str](), list[Exception]()

    async def write(self) -> None:
        async with self.stack.context() as db:
            while not self.stopped:
                name = f"{self.number}-{len(self.acknowledged) + len(self.errors)}"
                try:
                    await run(self.stack, db, partial(create, self.stack, name=name))
                    self.acknowledged.append(name)
                except (DBAPIError, OSError) as error:
                    self.errors.append(error)
                    await asyncio.sleep(0.05)

    async def writes_on(self) -> None:
        goal = len(self.acknowledged) + 10
        await asyncio.to_thread(wait_until, lambda: len(self.acknowledged) >= goal, "all wrote on")

    async def notices(self) -> None:
        await asyncio.to_thread(wait_until, lambda: bool(self.errors), "all noticed")


@asynccontextmanager
async def writing(writers: list[Writer]) -> AsyncIterator[None]:
    async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
        for writer in writers:
            tasks.create_task(writer.write())
        try:
            yield
        finally:
            for writer in writers:
                writer.stopped = True


def check(writers: list[Writer], *urls: str) -> None:
    """Every acknowledged write is at each of these."""
    for url in urls:
        assert {name for writer in writers for name in writer.acknowledged} <= set(names(url))


@pytest.mark.parametrize("name", MYSQL)
async def test_who_loses_against_another_galera_node_at_commit_runs_again(galera: list[GaleraNode], name: str) -> None:
    here, there = galera[:2]
    database = new_tables(here, "mysql+pymysql")
    stack, seen = stack_of(name, here.url("mysql", database)), list[str]()

    async def work(tx: Any) -> None:
        user = await stack.users(tx).get_by_email("one@example.com")
        assert user
        seen.append(user.name)
        user.name = f"{user.name}, changed here"
        await stack.users(tx).update(user)
        if len(seen) == 1:
            with DbContext(there.url("mysql+pymysql", database) + WAIT) as db, db.session() as session:
                session.execute(text("UPDATE users SET name = 'changed there', version = version + 1"))

    async with stack.context() as db:
        await create(stack, db, "one")
        await run(stack, db, work)
    assert seen == ["one", "changed there"]
    for node in galera:
        assert names(node.url("mysql+pymysql", database) + WAIT) == ["changed there, changed here"]


async def test_a_galera_node_dies_and_comes_back_and_no_write_is_lost(galera: list[GaleraNode]) -> None:
    """Among the writes are those that the dying node itself acknowledged."""
    *others, victim = galera
    database = new_tables(victim, "mysql+pymysql")
    urls = [node.url("mysql+pymysql", database) + WAIT for node in galera]
    assert [names(url) for url in urls] == [[], [], []]
    ways = [stack_of(name, node.url("mysql", database)) for node in [*others, victim] for name in MYSQL]
    writers = [Writer(number, way) for number, way in enumerate(ways)]
    staying, leaving = writers[: -len(MYSQL)], writers[-len(MYSQL) :]
    async with writing(writers):
        await asyncio.gather(*(writer.writes_on() for writer in writers))
        victim.kill()
        await asyncio.gather(*(writer.writes_on() for writer in staying), *(writer.notices() for writer in leaving))
        await asyncio.to_thread(victim.start)
        await asyncio.gather(*(writer.writes_on() for writer in writers))
    check(writers, *urls)
