"""Several servers, processes or tasks: each write is stored exactly once."""

import asyncio
import random
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import make_url, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.exc import StaleDataError

from database.context import DbContext
from database.context_async import DbContextAsync
from tests.conftest import DRIVERS, SYNC_DRIVERS, NewUrl, missing
from tests.models import Counter, Note, Own
from tests.servers import MariaDB, Postgres, Server, running

ON_SERVERS = ["postgresql+asyncpg", "postgresql+psycopg", "mysql+aiomysql"]
GALERA = next(Path("/usr").glob("lib*/**/libgalera_smm.so"), None)
POOLED: dict[str, dict[str, object]] = {
    "asyncpg": {"statement_cache_size": 0, "prepared_statement_cache_size": 0},
    "psycopg": {"prepare_threshold": None},
}


class GaleraNode(MariaDB):
    def __init__(self, folder: Path, *others: "GaleraNode") -> None:
        super().__init__(folder)
        # Each node has an address of its own, and so the default ports.
        self.address = f"127.{random.randrange(1, 255)}.0.{random.randrange(1, 255)}"
        self.others = ",".join(node.address for node in others)

    def command(self) -> list[str]:
        galera = [f"--wsrep-provider={GALERA}", "--wsrep-on=ON", "--binlog-format=ROW"]
        galera += [f"--wsrep-provider-options=gmcast.listen_addr=tcp://{self.address}"]
        galera += [f"--wsrep-cluster-address=gcomm://{self.others}"]
        return [*super().command(), *galera, f"--wsrep-node-address={self.address}"]


class Standby(Postgres):
    def __init__(self, primary: Postgres, folder: Path) -> None:
        Server.__init__(self, folder)
        self.run_as, self.programs = primary.run_as, primary.programs
        program, url = self.programs / "pg_basebackup", primary.url("postgresql")
        copy = [str(program), "-R", "-cfast", f"-D{folder}", f"-d{url}postgres"]
        subprocess.run(copy, check=True, cwd="/", user=self.run_as)
        # The primary acknowledges no commit before the standby has it.
        primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.execute("SELECT pg_reload_conf()")


class PgBouncer(Postgres):
    def __init__(self, server: Postgres, folder: Path) -> None:
        Server.__init__(self, folder)
        self.run_as = server.run_as
        folder.write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port} user=postgres\n"
            f"[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={self.port}\n"
            "unix_socket_dir=\nauth_type=any\n"
            "pool_mode=transaction\ndefault_pool_size=4\n"
        )

    def command(self) -> list[str]:
        return ["pgbouncer", str(self.folder)]


def create_tables(url: str) -> str:
    """Create the tests' tables and five counters. Return the URL."""
    driver = SYNC_DRIVERS[make_url(url).get_backend_name()]
    with DbContext(make_url(url).set(drivername=driver)) as db:
        Own.metadata.create_all(db.engine)
        with db.transaction() as session:
            session.add_all(Counter(id=number, value=number) for number in range(1, 6))
    return url


async def increment(session: AsyncSession) -> None:
    (await session.get_one(Counter, 1)).value += 1


@pytest.mark.parametrize("driver", ON_SERVERS)
async def test_ten_tasks_change_one_row(new_url: NewUrl, driver: str) -> None:
    async with DbContextAsync(create_tables(new_url(driver))) as db:
        for _ in range(5):
            await asyncio.gather(*(db.run_transaction(increment) for _ in range(10)))
        async with db.read_session() as session:
            assert (await session.get_one(Counter, 1)).value == 51


async def store_once(key: UUID, session: AsyncSession) -> None:
    # If the connection was lost during COMMIT, the note may be stored already.
    if await session.get(Note, key) is None:
        session.add(Note(id=key, word=""))
        (await session.get_one(Counter, 1)).value += 1


async def write_through(disaster: Callable[[], None], urls: list[str]) -> None:
    """Write with eight tasks while a disaster happens. The first URL survives it."""
    acknowledged = set[UUID]()
    contexts = [DbContextAsync(url) for url in urls]

    async def write() -> None:
        for key in [uuid4() for _ in range(8)]:
            while key not in acknowledged:
                try:
                    db = random.choice(contexts)
                    await db.run_transaction(partial(store_once, key))
                    acknowledged.add(key)
                except (DBAPIError, StaleDataError, OSError):
                    await asyncio.sleep(0.1)
            if len(acknowledged) == 20:
                await asyncio.to_thread(disaster)

    async with asyncio.timeout(90):
        await asyncio.gather(*(write() for _ in range(8)))
        async with contexts[0].read_session() as session:
            assert set(await session.scalars(select(Note.id))) == acknowledged
            counter = await session.get_one(Counter, 1)
            assert counter.value - 1 == len(acknowledged) == 64
        for db in contexts:
            await db.dispose()


async def test_a_galera_node_dies_and_the_others_go_on() -> None:
    if not (GALERA and MariaDB.program("mariadbd") and shutil.which("rsync")):
        missing("Galera is missing: apt-get install mariadb-server galera-4 rsync")
    with (
        running(GaleraNode) as one,
        running(lambda folder: GaleraNode(folder, one)) as two,
        running(lambda folder: GaleraNode(folder, one, two)) as three,
    ):
        # With wsrep_sync_wait, a node reads what the others have acknowledged.
        wait = f"{one.create_database()}?init_command=SET+wsrep_sync_wait=1"
        urls = [node.url("mysql+aiomysql") + wait for node in (one, two, three)]
        create_tables(urls[0])
        await write_through(three.kill, urls)


async def test_the_primary_dies_and_the_standby_is_promoted() -> None:
    with running(Postgres) as primary, running(partial(Standby, primary)) as standby:

        def fail_over() -> None:
            primary.kill()
            standby.execute("SELECT pg_promote()")

        hosts = "&".join(f"host=127.0.0.1:{s.port}" for s in (primary, standby))
        url = f"://postgres@/{primary.create_database()}?{hosts}"
        url += "&target_session_attrs=read-write"
        create_tables(f"postgresql{url}")
        urls = [f"postgresql+{driver}{url}" for driver in ("asyncpg", "psycopg")]
        await write_through(fail_over, urls)


@pytest.mark.parametrize("driver", POOLED)
async def test_pgbouncer_in_transaction_mode(postgres: Postgres, driver: str) -> None:
    if not shutil.which("pgbouncer"):
        missing("PgBouncer is missing: apt-get install pgbouncer")

    async def work(db: DbContextAsync, word: str) -> None:
        for key in [uuid4() for _ in range(10)]:
            async with db.transaction() as session:
                session.add(Note(id=key, word=word))
            async with db.read_session() as session:
                assert (await session.get_one(Note, key)).word == word

    database = postgres.create_database()
    create_tables(postgres.url("postgresql", database))
    with running(partial(PgBouncer, postgres)) as bouncer:
        url = bouncer.url(f"postgresql+{driver}", database)
        async with DbContextAsync(url, connect_args=POOLED[driver]) as db:
            await asyncio.gather(*(work(db, str(number)) for number in range(15)))


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("driver", DRIVERS)
def test_forked_workers_read_their_own_rows(new_url: NewUrl, driver: str) -> None:
    def read(number: int) -> None:
        query = select(Counter.value).where(Counter.id == number)
        for _ in range(100):
            with db.read_session() as session:
                assert session.scalar(query) == number

    with DbContext(create_tables(new_url(driver))) as db:
        read(1)
        fork = get_context("fork").Process
        workers = [fork(target=read, args=[number]) for number in range(2, 6)]
        for worker in workers:
            worker.start()
        read(1)
        for worker in workers:
            worker.join(30)
        assert [worker.exitcode for worker in workers] == [0] * 4
