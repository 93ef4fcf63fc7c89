"""The same code on clusters: through any node, and while a machine goes down.

What has to hold: no acknowledged write, which is one whose call returned, is ever lost. A call that raised may have
stored its user or not, if the connection broke while COMMIT was under way.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from threading import Event

import pytest
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from database.context import DbContext
from database.context_async import DbContextAsync
from database.models import UserDb
from repositories.user_repository import UserRepository
from repositories.user_repository_async import UserRepositoryAsync
from tests.clusters import GaleraNode, Primary, Standby, galera_cluster, postgres_pair, wait_until
from tests.conftest import DRIVERS, empty, missing
from tests.stacks import Stack
from tests.test_contract import *  # noqa: F403 - the contract's tests run here too, with the stack of this file
from tests.test_demo import MAIN, Command, run, to

pytestmark = pytest.mark.cluster

NO_GALERA = "no Galera: install MariaDB's server with it (apt-get install mariadb-server galera-4 rsync)"
MYSQL = [name for name, (driver, _) in DRIVERS.items() if driver.startswith("mysql")]
POSTGRES = [name for name, (driver, _) in DRIVERS.items() if driver.startswith("postgresql")]


@pytest.fixture(scope="module")
def galera() -> Iterator[list[GaleraNode]]:
    if not (GaleraNode.provider() and GaleraNode.program("mariadbd") and GaleraNode.program("rsync")):
        missing(NO_GALERA)
    with galera_cluster() as nodes:
        yield nodes


@pytest.fixture
def pair() -> Iterator[tuple[Primary, Standby]]:
    with postgres_pair() as servers:
        yield servers


@pytest.fixture(scope="module")
def contract_dbs(galera: list[GaleraNode]) -> Iterator[list[DbContext]]:
    """On every node, a database with its tables."""
    contexts = [DbContext(node.url("mysql+pymysql", node.create_database())) for node in galera]
    for db in contexts:
        db.create_all()
    yield contexts
    for db in contexts:
        db.dispose()


@pytest.fixture(params=range(3), ids=[f"node{number}-{name}" for number, name in enumerate(MYSQL)])
def stack(request: pytest.FixtureRequest, contract_dbs: list[DbContext]) -> Stack:
    """Every node, each through another driver."""
    db = contract_dbs[request.param]
    driver, is_async = DRIVERS[MYSQL[request.param]]
    empty(db)
    return Stack(db.engine.url.set(drivername=driver), is_async=is_async)


class Writer:
    """Stores one user after the other, in a task or a thread of its own, and keeps account of the answers."""

    def __init__(self, driver: str, url: str) -> None:
        self.driver, self.is_async = driver, DRIVERS[driver][1]
        self.url = url
        self.number = 0
        self.acknowledged: list[str] = []
        self.errors: Counter[str] = Counter()

    def next_email(self) -> str:
        self.number += 1
        return f"{self.number}@{self.driver}-{id(self)}.example.com"

    def note(self, error: DBAPIError | OSError) -> None:
        cause = error.orig if isinstance(error, DBAPIError) else error
        number = next((arg for arg in getattr(cause, "args", ()) if isinstance(arg, int)), None)
        self.errors[f"{type(cause).__name__} {number or getattr(cause, 'sqlstate', None) or ''}".strip()] += 1

    async def write(self, stop: Event) -> None:
        await (self._write_async(stop) if self.is_async else asyncio.to_thread(self._write, stop))

    def _write(self, stop: Event) -> None:
        def work(tx: DbContext, email: str) -> None:
            UserRepository(tx).create(UserDb(name=self.driver, email=email))

        with DbContext(self.url) as db:
            while not stop.is_set():
                email = self.next_email()
                try:
                    db.run(partial(work, email=email))
                    self.acknowledged.append(email)
                except (DBAPIError, OSError) as error:
                    self.note(error)
                    time.sleep(0.05)

    async def _write_async(self, stop: Event) -> None:
        async def work(tx: DbContextAsync, email: str) -> None:
            await UserRepositoryAsync(tx).create(UserDb(name=self.driver, email=email))

        async with DbContextAsync(self.url) as db:
            while not stop.is_set():
                email = self.next_email()
                try:
                    await db.run(partial(work, email=email))
                    self.acknowledged.append(email)
                except (DBAPIError, OSError) as error:
                    self.note(error)
                    await asyncio.sleep(0.05)


async def eventually(condition: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, what)


async def progress(writers: list[Writer]) -> None:
    """Wait until each of them has stored 20 more."""
    goals = {writer: len(writer.acknowledged) + 20 for writer in writers}
    await eventually(lambda: all(len(writer.acknowledged) >= goal for writer, goal in goals.items()), "all wrote on")


@asynccontextmanager
async def writing(writers: list[Writer]) -> AsyncIterator[None]:
    stop = Event()
    async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
        for writer in writers:
            tasks.create_task(writer.write(stop))
        try:
            yield
        finally:
            stop.set()


def check(writers: list[Writer], *urls: str) -> None:
    """Look for the acknowledged writes at each of these, and print what the writers went through."""
    for writer in writers:
        print(f"{writer.driver:13} {len(writer.acknowledged):4} acknowledged, errors: {dict(writer.errors)}")
    acknowledged = {email for writer in writers for email in writer.acknowledged}
    for url in urls:
        emails = {email for _, email in users_at(url)}
        lost, unknown = len(acknowledged - emails), len(emails - acknowledged)
        print(f"{lost} of {len(acknowledged)} lost; {unknown} stored by calls that raised")
        assert not lost


def users_at(url: str) -> list[tuple[str, str]]:
    """Return every user's name and e-mail address; a Galera node waits until it has what the others had by now."""
    if url.startswith("mysql"):
        url += "?init_command=SET+wsrep_sync_wait=15"
    with DbContext(url) as db, db.sessionmaker() as session:
        return [(user.name, user.email) for user in session.scalars(select(UserDb))]


async def test_increments_through_all_galera_nodes_lose_nothing(galera: list[GaleraNode]) -> None:
    database = galera[0].create_database()
    with DbContext(galera[0].url("mysql+pymysql", database)) as db:
        db.create_all()
        id = UserRepository(db).create(UserDb(name="0", email="counter@example.com")).id

    def count_up(tx: DbContext) -> None:
        user = UserRepository(tx).get_by_id(id)
        assert user
        user.name = str(int(user.name) + 1)
        UserRepository(tx).update(user)

    async def count_up_async(tx: DbContextAsync) -> None:
        user = await UserRepositoryAsync(tx).get_by_id(id)
        assert user
        user.name = str(int(user.name) + 1)
        await UserRepositoryAsync(tx).update(user)

    def ten_times(url: str) -> None:
        with DbContext(url) as db:
            for _ in range(10):
                db.run(count_up, attempts=20)  # nine rivals for one row

    async def ten_times_async(url: str) -> None:
        async with DbContextAsync(url) as db:
            for _ in range(10):
                await db.run(count_up_async, attempts=20)

    for node in galera:
        assert users_at(node.url("mysql+pymysql", database)) == [("0", "counter@example.com")]
    async with asyncio.TaskGroup() as tasks:
        for node in galera:
            tasks.create_task(asyncio.to_thread(ten_times, node.url("mysql+pymysql", database)))
            tasks.create_task(ten_times_async(node.url("mysql+aiomysql", database)))
            tasks.create_task(ten_times_async(node.url("mysql+asyncmy", database)))
    for node in galera:
        assert users_at(node.url("mysql+pymysql", database)) == [("90", "counter@example.com")]


async def test_a_galera_node_dies_and_comes_back_and_no_write_is_lost(galera: list[GaleraNode]) -> None:
    """Among the writes are those that the dying node itself acknowledged."""
    victim = galera[-1]
    database = victim.create_database()
    with DbContext(victim.url("mysql+pymysql", database)) as db:
        db.create_all()
    for node in galera:
        assert users_at(node.url("mysql+pymysql", database)) == []
    writers = [Writer(name, node.url(DRIVERS[name][0], database)) for node in galera for name in MYSQL]
    async with writing(writers):
        await progress(writers)
        victim.kill()
        await progress(writers[: -len(MYSQL)])
        await asyncio.to_thread(victim.start)
        await progress(writers)
    check(writers, *(node.url("mysql+pymysql", database) for node in galera))


@pytest.mark.parametrize("standby_was_away", [False, True])
async def test_a_postgres_standby_takes_over_and_no_write_is_lost(
    pair: tuple[Primary, Standby], standby_was_away: bool
) -> None:
    """Without synchronous replication, what is written while the standby is away would be lost.

    The demo makes the tables: Alembic and main.py take the URL with two hosts too.
    """
    primary, standby = pair
    hosts = "&".join(f"host=127.0.0.1:{server.address.port}" for server in pair)
    address = f"://postgres@/{primary.create_database()}?{hosts}&target_session_attrs=primary"
    demo = Command(MAIN, to(f"postgresql+asyncpg{address}"))
    run(demo).succeeded()
    writers = [Writer(name, DRIVERS[name][0] + address) for name in POSTGRES]
    async with writing(writers):
        await progress(writers)
        if standby_was_away:
            standby.stop()
            await asyncio.sleep(0.5)  # nobody is told now that a write is stored
        primary.kill()
        await eventually(lambda: all(writer.errors for writer in writers), "all noticed")
        if standby_was_away:
            await asyncio.to_thread(standby.start)
        await asyncio.to_thread(standby.promote)
        await progress(writers)
    check(writers, f"postgresql+psycopg{address}")
    run(demo).succeeded()
