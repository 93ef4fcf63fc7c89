"""Faults of a database: it restarts, hangs up, ends a transaction by itself, is full, read-only, or never answers."""

import asyncio
import gc
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from itertools import count, product
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any, cast

import pytest
from sqlalchemy import URL, Connection, NullPool, TextClause, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError, OperationalError

from database.context import DbContext
from database.context_async import DbContextAsync
from database.models import UserDb
from tests import stacks
from tests.conftest import DRIVERS, running
from tests.servers import MariaDB, Server, free_port
from tests.stacks import Stack, pool, sync_engine

PATIENCE = 30  # seconds, for what must not hang
SQLITE, POSTGRES, MYSQL = ([d for d in DRIVERS if DRIVERS[d][0].startswith(s)] for s in ("sqlite", "postgres", "mysql"))
SERVERS = POSTGRES + MYSQL
ON_A_SERVER = pytest.mark.parametrize("stack", SERVERS, indirect=True)
ON_SQLITE = pytest.mark.parametrize("stack", SQLITE, indirect=True)
TOLD = (DBAPIError, InvalidRequestError)
INSERT = text("INSERT INTO users (version, name, email) VALUES (1, :name, :email)")


class StrictMariaDB(MariaDB):
    """It ends a transaction by itself for more reasons than a deadlock."""

    def command(self) -> list[str]:
        settings = ["innodb-snapshot-isolation=ON", "innodb-rollback-on-timeout=ON", "innodb-lock-wait-timeout=1"]
        return [*super().command(), *[f"--{setting}" for setting in settings]]


# In the place of conftest's: this MariaDB, and databases on it.
@pytest.fixture(scope="module")
def mariadb() -> Iterator[Server]:
    with running(StrictMariaDB) as server:
        yield server


@pytest.fixture(scope="module")
def kept() -> Iterator[dict[str, DbContext]]:
    yield (contexts := dict[str, DbContext]())
    for db in contexts.values():
        db.dispose()


@pytest.fixture
def outside(stack: Stack) -> Iterator[Connection]:
    """A connection of somebody else's, to look and to disturb."""
    url = make_url(stack.url)
    url = url.set(drivername=stacks.SYNC[url.get_backend_name()])
    with create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool).connect() as connection:
        yield connection


def names(outside: Connection) -> list[str]:
    return list(outside.scalars(text("SELECT name FROM users ORDER BY id")))


async def create(stack: Stack, db: Any, name: str) -> None:
    await stack.users(db).create(UserDb(name=name, email=f"{name}@example.com"))


async def run(stack: Stack, db: DbContextAsync, work: Callable[[Any], Awaitable[None]]) -> None:
    """db.run, with the same work in both stacks; the sync one in a thread, so that the event loop goes on."""

    async def adapted(tx: Any) -> None:
        await work(stacks.Awaitable(tx))

    async with asyncio.timeout(PATIENCE):
        if stack.is_async:
            await db.run(work)
        else:
            await asyncio.to_thread(cast(Any, db).target.run, lambda tx: asyncio.run(adapted(tx)))


def own_id(stack: Stack) -> TextClause:
    return text("SELECT CONNECTION_ID()" if "mysql" in stack.url else "SELECT pg_backend_pid()")


def hang_up(outside: Connection, id: int) -> None:
    """Let the server close a connection, and return when it did."""
    is_mysql = outside.dialect.name == "mysql"
    outside.exec_driver_sql(f"KILL {id}" if is_mysql else f"SELECT pg_terminate_backend({id})").close()
    left = "SELECT id FROM information_schema.processlist" if is_mysql else "SELECT pid FROM pg_stat_activity"
    while id in set(outside.scalars(text(left))):
        time.sleep(0.01)


@ON_A_SERVER
async def test_a_server_that_restarts_costs_no_call_after_an_idle_second(
    stack: Stack, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue("mariadb" if "mysql" in stack.url else "postgres")
    async with stack.context() as reads, stack.context() as writes, stack.context() as transacts:
        for db in (reads, writes, transacts):
            await stack.users(db).get_page()
        await asyncio.sleep(1.1)  # an idle second is what is promised
        server.stop()
        server.start()
        await stack.users(reads).get_page()
        await create(stack, writes, "one")
        async with transacts.transaction() as tx:
            await create(stack, tx, "two")


@ON_A_SERVER
class TestAConnectionLost:
    @pytest.mark.parametrize("caught", [False, True])
    async def test_in_a_transaction_is_told_and_stores_nothing(
        self, stack: Stack, outside: Connection, caught: bool
    ) -> None:
        async with stack.context() as db:
            with pytest.raises(TOLD):
                async with db.transaction() as tx:
                    await create(stack, tx, "one")
                    async with tx.session() as session:
                        hang_up(outside, (await session.execute(own_id(stack))).scalar_one())
                    with suppress(*[DBAPIError] * caught):
                        await create(stack, tx, "two")
            assert pool(db).checkedout() == 0
            assert names(outside) == []
            await create(stack, db, "three")

    async def test_at_commit_is_told_and_not_repeated(self, stack: Stack, outside: Connection) -> None:
        attempts = count(1)
        async with stack.context() as db:
            event.listen(
                sync_engine(db), "commit", lambda connection: hang_up(outside, connection.scalar(own_id(stack)))
            )
            with pytest.raises(DBAPIError) as told:
                await run(stack, db, lambda tx: create(stack, tx, f"attempt {next(attempts)}"))
            assert pool(db).checkedout() == 0
        assert told.value.connection_invalidated
        assert (names(outside), next(attempts)) == ([], 2)


class Conflict:
    """Work on two users, and a rival who makes the first change of the second one fail with a database's code."""

    def __init__(self, stack: Stack, outside: Connection, rival: Connection, code: str | int) -> None:
        self.stack, self.outside, self.rival, self.code, self.attempts = stack, outside, rival, code, 0
        self.thread, self.waits, self.seen = ThreadPoolExecutor(1), Future[None](), list[bool]()

    def change(self, name: str) -> None:
        self.rival.execute(text("UPDATE users SET version = version + 1 WHERE email = :name"), {"name": name})

    def disturb(self) -> None:
        if self.code in ("40P01", 1213):  # a deadlock, which the rival survives: it is patient, or has more to lose
            waiting = "information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
            if self.code == "40P01":
                waiting = "pg_locks WHERE NOT granted"
                self.rival.execute(text("SET deadlock_timeout = '1h'"))
            self.rival.execute(INSERT, [{"name": "rival", "email": str(number)} for number in range(50)])
            self.change("second")
            self.waits = self.thread.submit(self.change, "first")
            while not self.outside.scalar(text(f"SELECT count(*) FROM {waiting}")):
                time.sleep(0.2)  # MariaDB shows the same again to who asks within 0.1 s
        else:
            self.change("second")  # which locks it
            if self.code != 1205:
                self.rival.commit()

    def release(self) -> None:
        if not self.waits.cancel():
            self.waits.result(PATIENCE)
        self.rival.rollback()

    async def work(self, tx: Any, caught: str = "") -> None:
        self.attempts += 1
        if self.attempts > 1:
            self.release()
        users = self.stack.users(tx)
        await create(self.stack, tx, "before")
        first, second = [user for user in await users.get_page() if user.name in ("first", "second")]
        first.name += "!"
        await users.update(first)
        if self.attempts == 1:
            self.disturb()
        with suppress(*[DBAPIError] * (caught == "around")):
            async with tx.transaction() as inner:
                second.name += "!"
                try:
                    await self.stack.users(inner).update(second)
                except DBAPIError as error:
                    self.seen.append(
                        self.code in (getattr(error.orig, "sqlstate", None), *getattr(error.orig, "args", ()))
                    )
                    if caught != "inside":
                        raise
        await create(self.stack, tx, "after")


class TestAConflictInAnInnerTransaction:
    ON_MYSQL = list(product(MYSQL, [1020, 1205, 1213]))
    CODES = [*product(POSTGRES, ["40001", "40P01"]), *ON_MYSQL]

    @pytest.fixture
    def conflict(self, stack: Stack, outside: Connection, code: str | int) -> Iterator[Conflict]:
        with outside.engine.connect().execution_options(isolation_level="READ COMMITTED") as rival:
            outside.execute(INSERT, [{"name": name, "email": name} for name in ("first", "second")])
            if "postgresql" in stack.url:  # it is to look for deadlocks sooner than after a second
                database = make_url(stack.url).database
                outside.exec_driver_sql(f"ALTER DATABASE {database} SET deadlock_timeout = '50ms'")
            yield Conflict(stack, outside, rival, code)

    @pytest.mark.parametrize(("stack", "code"), CODES, indirect=["stack"])
    async def test_makes_run_repeat(self, stack: Stack, conflict: Conflict, outside: Connection) -> None:
        options = {"isolation_level": "REPEATABLE READ"} if conflict.code == "40001" else {}
        async with stack.context(**options) as db:
            await run(stack, db, lambda tx: conflict.work(tx))
            assert pool(db).checkedout() == 0
        assert (conflict.seen, conflict.attempts) == ([True], 2)
        assert names(outside) == ["first!", "second!", "before", "after"]

    @pytest.mark.parametrize("caught", ["inside", "around"])
    @pytest.mark.parametrize(("stack", "code"), ON_MYSQL, indirect=["stack"])
    async def test_that_is_caught_stores_no_half(
        self, stack: Stack, conflict: Conflict, outside: Connection, caught: str
    ) -> None:
        """MySQL has undone the whole transaction; what comes after would be stored alone."""
        async with stack.context() as db:
            with pytest.raises(TOLD):
                async with db.transaction() as tx:
                    await conflict.work(tx, caught)
            conflict.release()
            assert conflict.seen == [True]
            assert pool(db).checkedout() == 0
            assert names(outside) == ["first", "second"]
            await create(stack, db, "next")


@ON_SQLITE
class TestSQLiteEndsATransactionByItself:
    @pytest.fixture
    async def db(self, stack: Stack, outside: Connection, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Any]:
        """A context that in the end has stored nothing, has its one connection back, and nothing to say about it."""
        async with stack.context(pool_size=1, max_overflow=0) as db:
            yield db
            assert pool(db).checkedout() == 0
            assert names(outside) == []
            async with db.session() as session:
                await session.execute(text("PRAGMA max_page_count = 1000000"))
            async with db.transaction() as tx:
                await create(stack, tx, "next")
        assert names(outside) == ["next"]
        assert not caplog.records

    async def fill(self, session: Any) -> None:
        await session.execute(text("PRAGMA max_page_count = 1"))  # no more than there are
        for number in range(1000):
            await session.execute(INSERT, {"name": "x" * 100, "email": f"{number}@{'x' * 200}"})

    @pytest.mark.parametrize("caught", [False, True])
    @pytest.mark.parametrize("inner", [False, True])
    async def test_when_full_in_a_transaction(self, stack: Stack, db: Any, inner: bool, caught: bool) -> None:
        with pytest.raises(TOLD, match=None if caught else "disk is full"):
            async with db.transaction() as tx:
                await create(stack, tx, "before")
                with suppress(*[DBAPIError] * caught):
                    async with tx.transaction() if inner else nullcontext(tx) as part, part.session() as session:
                        await self.fill(session)
                await create(stack, tx, "after")

    @pytest.mark.parametrize("caught", [False, True])
    async def test_when_full_in_a_session(self, db: Any, caught: bool) -> None:
        with pytest.raises(TOLD, match=None if caught else "disk is full"):
            async with db.session() as session:
                await session.execute(INSERT, {"name": "before", "email": "before"})
                with suppress(*[DBAPIError] * caught):
                    await self.fill(session)
                await session.execute(INSERT, {"name": "after", "email": "after"})

    @pytest.mark.parametrize("by_hand", [False, True])
    async def test_when_it_refuses_commit(self, db: Any, by_hand: bool) -> None:
        with pytest.raises(IntegrityError):
            async with db.session() as session:
                await session.execute(text("PRAGMA defer_foreign_keys = ON"))
                await session.execute(INSERT, {"name": "before", "email": "before"})
                await session.execute(text("INSERT INTO tax_accounts (id, version, number) VALUES (7, 1, 'orphan')"))
                if by_hand:
                    await session.commit()

    async def test_when_rolled_back_by_hand_in_an_inner_transaction(self, stack: Stack, db: Any) -> None:
        with pytest.raises(TOLD):
            async with db.transaction() as tx:
                await create(stack, tx, "before")
                async with tx.transaction() as inner, inner.session() as session:
                    await session.execute(text("ROLLBACK"))


@ON_SQLITE
class TestReadOnlySQLite:
    """It can be read, and says at once that it can't be written."""

    async def check(self, url: URL, stack: Stack) -> None:
        stack = Stack(url, is_async=stack.is_async)

        async def read(tx: Any) -> None:
            assert await stack.users(tx).get_page() == []

        async with stack.context() as db:
            await run(stack, db, read)
            for write in (create(stack, db, "new"), run(stack, db, lambda tx: create(stack, tx, "new"))):
                with pytest.raises(OperationalError, match="readonly"):
                    await write
            assert pool(db).checkedout() == 0

    @pytest.mark.parametrize("journal", ["WAL", "DELETE"])
    async def test_file(self, stack: Stack, outside: Connection, journal: str) -> None:
        assert outside.scalar(text(f"PRAGMA journal_mode = {journal}")) == journal.lower()
        url = make_url(stack.url)
        await self.check(url.set(database=f"file:{url.database}", query={"mode": "ro", "uri": "true"}), stack)


def test_several_processes_open_a_new_sqlite_file_at_once(tmp_path: Path) -> None:
    script = """if True:
        import sys
        from database.context import DbContext
        from database.models import UserDb
        for path in sys.stdin:
            with DbContext(f"sqlite:///{path.strip()}") as db:
                db.create_all()
                with db.session() as session:
                    session.add(UserDb(name="one", email=f"{sys.argv[1]}@example.com"))
            print("stored", flush=True)
    """
    processes = [Popen([sys.executable, "-c", script, str(n)], stdin=PIPE, stdout=PIPE, text=True) for n in range(4)]
    for number in range(20):
        path = tmp_path / f"{number}.db"
        for process in processes:
            print(path, file=process.stdin, flush=True)
        assert [process.stdout and process.stdout.readline() for process in processes] == ["stored\n"] * 4
        with DbContext(f"sqlite:///{path}") as db, db.session() as session:
            assert session.scalar(text("SELECT count(*) FROM users")) == 4
    assert [process.communicate()[0] for process in processes] == [""] * 4


@pytest.mark.parametrize("answer", ["none", "refused"])
@pytest.mark.parametrize("name", SERVERS)
async def test_a_host_where_no_database_answers_is_told_in_time(name: str, answer: str) -> None:
    driver, is_async = DRIVERS[name]
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts by itself
        port = free_port() if answer == "refused" else silent.getsockname()[1]
        stack = Stack(f"{driver}://user:secret@127.0.0.1:{port}/name", is_async=is_async)
        async with stack.context(connect_args={"timeout" if name == "asyncpg" else "connect_timeout": 1}) as db:
            with pytest.raises((DBAPIError, OSError)) as error:
                await run(stack, db, lambda tx: create(stack, tx, "one"))
            assert "secret" not in str(error.value)
            assert pool(db).checkedout() == 0
    gc.collect()  # which would tell of a connection that was left open
