"""More than one machine: what run_transaction() acknowledges is stored exactly once."""

import asyncio
import getpass
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import psutil  # type: ignore[import-untyped]
import pytest
from sqlalchemy import make_url, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.exc import StaleDataError

from database.context import DbContext
from database.context_async import DbContextAsync
from tests.conftest import DRIVERS, SYNC_DRIVERS, NewUrl, missing
from tests.models import Counter, Note, Own
from tests.servers import MariaDB, Postgres, Server, free_port, running

GALERA = next(Path("/usr").glob("lib*/**/libgalera_smm.so"), None)
POOLED: dict[str, dict[str, object]] = {
    "asyncpg": {"statement_cache_size": 0, "prepared_statement_cache_size": 0},
    "psycopg": {"prepare_threshold": None},
}


class GaleraNode(MariaDB):
    # rsync copies the data to a new node. It does not run as root.
    account = "mysql" if os.geteuid() == 0 else getpass.getuser()

    def __init__(self, folder: Path, *others: "GaleraNode") -> None:
        self.others, self.group_port, self.copy_port = others, free_port(), free_port()
        folder.mkdir()
        for owned in (folder, folder.parent):
            shutil.chown(owned, self.account)
        super().__init__(folder)

    def install(self) -> None:
        if not self.others:
            super().install()

    def command(self) -> list[str]:
        options = (
            f"gmcast.listen_addr=tcp://127.0.0.1:{self.group_port};gcache.size=16M"
        )
        others = ",".join(f"127.0.0.1:{node.group_port}" for node in self.others)
        settings = [
            "binlog-format=ROW",
            "innodb-autoinc-lock-mode=2",
            "wsrep-on=ON",
            f"wsrep-provider={GALERA}",
            f"wsrep-provider-options={options}",
            f"wsrep-cluster-address=gcomm://{others}",
            f"wsrep-node-address=127.0.0.1:{self.group_port}",
            f"wsrep-sst-receive-address=127.0.0.1:{self.copy_port}",
        ]
        return super().command() + [f"--{setting}" for setting in settings]


class Standby(Postgres):
    def __init__(self, primary: Postgres, folder: Path) -> None:
        Server.__init__(self, folder)
        self.run_as, self.programs = primary.run_as, primary.programs
        folder.mkdir(mode=0o700)
        shutil.chown(folder, self.run_as or os.getuid())
        program, url = self.programs / "pg_basebackup", primary.url("postgresql", "")
        copy = [str(program), "-R", "-cfast", f"-D{folder}", f"-d{url}postgres"]
        subprocess.run(copy, check=True, cwd="/", user=self.run_as, timeout=60)
        # The primary acknowledges no commit before the standby has it.
        primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.execute("SELECT pg_reload_conf()")


class PgBouncer(Postgres):
    def __init__(self, server: Server, folder: Path) -> None:
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
        for key in [uuid4() for _ in range(15)]:
            while key not in acknowledged:
                try:
                    db = random.choice(contexts)
                    await db.run_transaction(partial(store_once, key))
                    acknowledged.add(key)
                except (DBAPIError, StaleDataError, OSError):
                    await asyncio.sleep(0.1)
            if len(acknowledged) == 40:
                await asyncio.to_thread(disaster)

    async with asyncio.timeout(90):
        await asyncio.gather(*(write() for _ in range(8)))
        async with contexts[0].read_session() as session:
            assert set(await session.scalars(select(Note.id))) == acknowledged
            counter = await session.get_one(Counter, 1)
            assert counter.value - 1 == len(acknowledged) == 120
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
        urls = [node.url("mysql+aiomysql", "") + wait for node in (one, two, three)]
        create_tables(urls[0])
        await write_through(three.kill, urls)


async def test_the_primary_dies_and_the_standby_is_promoted() -> None:
    with running(Postgres) as primary, running(partial(Standby, primary)) as standby:

        def fail_over() -> None:
            assert primary.process
            server = psutil.Process(primary.process.pid)
            server.suspend()  # It would end the processes by itself.
            for process in [*server.children(), server]:
                process.kill()
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
    keys = [uuid4() for _ in range(200)]
    jobs = iter(range(1200))

    async def work(db: DbContextAsync) -> None:
        for job in jobs:
            if job < 200:
                async with db.transaction() as session:
                    session.add(Note(id=keys[job], word=str(job)))
            else:
                async with db.read_session() as session:
                    note = await session.get_one(Note, keys[job % 100])
                    assert note.word == str(job % 100)

    database = postgres.create_database()
    create_tables(postgres.url("postgresql", database))
    with running(partial(PgBouncer, postgres)) as bouncer:
        url = bouncer.url(f"postgresql+{driver}", database)
        db = DbContextAsync(url, pool_size=32, connect_args=POOLED[driver])
        async with asyncio.timeout(60), db:
            await asyncio.gather(*(work(db) for _ in range(32)))


def fork_four(read: Callable[[int], int]) -> None:
    """Let four processes add up the value of one counter each, a hundred times."""
    workers = []
    for number in range(2, 6):
        workers.append(os.fork())
        if not workers[-1]:
            signal.alarm(30)  # ends a worker that hangs
            try:
                os._exit(read(number) != 100 * number)
            finally:
                os._exit(1)
    assert [os.waitpid(worker, 0)[1] for worker in workers] == [0] * 4


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("driver", DRIVERS)
def test_forked_workers_read_their_own_rows(new_url: NewUrl, driver: str) -> None:
    with DbContext(create_tables(new_url(driver))) as db:

        def read(number: int) -> int:
            query = select(Counter.value).where(Counter.id == number)
            with db.read_session() as session:
                return sum(session.scalars(query).one() for _ in range(100))

        assert read(1) == 100
        fork_four(read)


@pytest.mark.filterwarnings("ignore:.*fork")
def test_forked_workers_with_asyncio_read_their_own_rows(new_url: NewUrl) -> None:
    db = DbContextAsync(create_tables(new_url("postgresql+asyncpg")))

    async def read(number: int) -> int:
        query = select(Counter.value).where(Counter.id == number)
        async with db.read_session() as session:
            return sum([(await session.scalars(query)).one() for _ in range(100)])

    with asyncio.Runner() as runner:
        assert runner.run(read(1)) == 100
        fork_four(lambda number: asyncio.run(read(number)))
        runner.run(db.dispose())
