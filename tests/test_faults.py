"""Faults of a server: it restarts, hangs up, finds a deadlock, or goes away in the middle of a COMMIT."""

import asyncio
import gc
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, cast

import pytest
from sqlalchemy import Connection, make_url, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError, OperationalError
from sqlalchemy.orm.exc import StaleDataError

from database.context import DbContext
from database.context_async import DbContextAsync
from database.models import UserDb
from database.shared import can_repeat
from tests.conftest import DRIVERS, SYNC, running
from tests.servers import MariaDB, Postgres, Server
from tests.stacks import AwaitableContext, Stack, pool, scalars
from tests.test_contract import a_user
from tests.test_traps import ASYNC, MYSQL, elsewhere, names, settle, until

SERVERS = [name for name, (driver, _) in DRIVERS.items() if "sqlite" not in driver]
ON_A_SERVER = pytest.mark.parametrize("stack", SERVERS, indirect=True)
WARM = 4  # connections in the pool

type Call = Callable[[Stack, DbContextAsync], Awaitable[None]]


@pytest.fixture(scope="module", params=[Postgres, MariaDB], ids=["postgresql", "mysql"])
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with running(request.param) as server:
        yield server


async def read(stack: Stack, db: DbContextAsync) -> None:
    await stack.users(db).get_page()


async def write(stack: Stack, db: DbContextAsync) -> None:
    await stack.users(db).delete((await stack.users(db).create(a_user(random.getrandbits(60)))).id)


async def transact(stack: Stack, db: DbContextAsync) -> None:
    async with db.transaction() as tx:
        await write(stack, tx)


CALLS: tuple[Call, ...] = (read, write, transact)


@contextmanager
def another_connection(stack: Stack) -> Iterator[Connection]:
    url = make_url(stack.url)
    url = url.set(drivername=SYNC[url.get_backend_name()])
    with DbContext(url, isolation_level="AUTOCOMMIT") as db, db.engine.connect() as connection:
        yield connection


def connections_to(stack: Stack, asking: Connection) -> set[int]:
    """All connections to the database, but the one that asks."""
    query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    if "mysql" in stack.url:
        query = "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
    return set(asking.scalars(text(query)))


def hang_up(stack: Stack, *connections: int) -> None:
    """Let the server close these connections, and return when it did."""
    with another_connection(stack) as asking:
        for connection in connections:
            command = "KILL {}" if "mysql" in stack.url else "SELECT pg_terminate_backend({})"
            asking.exec_driver_sql(command.format(connection)).close()
        while not connections_to(stack, asking).isdisjoint(connections):
            time.sleep(0.01)


async def connection_of(stack: Stack, tx: DbContextAsync) -> int:
    query = "SELECT CONNECTION_ID()" if "mysql" in stack.url else "SELECT pg_backend_pid()"
    return cast(int, (await scalars(tx, text(query)))[0])


class TestBetweenCalls:
    """Each call meets a pool whose connections are all dead: each call is the first one for a context of its own."""

    @asynccontextmanager
    async def warm(self, server: Server) -> AsyncIterator[list[tuple[Call, Stack, DbContextAsync]]]:
        database = server.create_database()
        with DbContext(server.url(SYNC[server.scheme], database)) as sync:
            sync.create_all()
        async with AsyncExitStack() as opened:
            warmed = []
            for driver, is_async in (DRIVERS[name] for name in SERVERS if DRIVERS[name][0].startswith(server.scheme)):
                stack = Stack(server.url(driver, database), is_async=is_async)
                for call in CALLS:
                    db = await opened.enter_async_context(stack.context())
                    async with AsyncExitStack() as at_once:
                        for _ in range(WARM):
                            await read(stack, await at_once.enter_async_context(db.transaction()))
                    assert pool(db).checkedin() == WARM
                    warmed.append((call, stack, db))
            yield warmed

    async def check(self, warmed: list[tuple[Call, Stack, DbContextAsync]]) -> None:
        for call, stack, db in warmed:
            await asyncio.gather(*(call(stack, db) for _ in range(WARM)))
            for other in CALLS:
                await other(stack, db)

    @pytest.mark.parametrize("loop", ["blocked", "running"])
    async def test_a_server_that_restarts_costs_no_call(self, own_server: Server, loop: str) -> None:
        async with self.warm(own_server) as warmed:
            for step in (own_server.stop, own_server.start):
                if loop == "running":  # and sees each connection end
                    await asyncio.to_thread(step)
                else:
                    step()
            await self.check(warmed)

    @pytest.mark.parametrize("loop", ["blocked", "running"])
    async def test_a_server_that_hangs_up_costs_no_call(self, own_server: Server, loop: str) -> None:
        async with self.warm(own_server) as warmed:
            stack = warmed[0][1]
            with another_connection(stack) as asking:
                connections = connections_to(stack, asking)
            assert len(connections) == WARM * len(warmed)
            if loop == "running":
                await asyncio.to_thread(hang_up, stack, *connections)
            else:
                hang_up(stack, *connections)
            await self.check(warmed)


@ON_A_SERVER
class TestInATransaction:
    async def test_a_lost_connection_is_told_and_the_next_call_works(self, stack: Stack, db: DbContextAsync) -> None:
        with pytest.raises(DBAPIError) as caught:
            async with db.transaction() as tx:
                await stack.users(tx).create(a_user(1))
                hang_up(stack, await connection_of(stack, tx))
                await stack.users(tx).create(a_user(2))
        assert caught.value.connection_invalidated
        await stack.users(db).create(a_user(3))
        assert await names(stack) == ["User 3"]

    async def test_a_lost_connection_that_is_caught_stores_no_half(self, stack: Stack, db: DbContextAsync) -> None:
        with pytest.raises((DBAPIError, InvalidRequestError), match=r"invalid transaction|[Cc]onnection"):
            async with db.transaction() as tx:
                await stack.users(tx).create(a_user(1))
                hang_up(stack, await connection_of(stack, tx))
                with pytest.raises(DBAPIError):
                    await stack.users(tx).create(a_user(2))
                with pytest.raises((DBAPIError, InvalidRequestError)):
                    await stack.users(tx).create(a_user(3))
        assert await names(stack) == []

    async def test_a_connection_lost_before_the_end_is_told(self, stack: Stack, db: DbContextAsync) -> None:
        with pytest.raises(DBAPIError):
            async with db.transaction() as tx:
                await stack.users(tx).create(a_user(1))
                hang_up(stack, await connection_of(stack, tx))
        assert await names(stack) == []


# A connection whose opening is cancelled is left to the garbage collector: https://github.com/omnilib/aiosqlite/issues/259
@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")
@ASYNC
async def test_200_tasks_most_of_them_cancelled_leave_the_pool_whole(stack: Stack) -> None:
    chance = random.Random(2026)
    refused: set[int] = set()
    size, overflow = 5, 10
    returned: list[int] = []

    async def work(n: int) -> None:
        if n % 3 == 0:
            await stack.users(db).create(a_user(n))
            returned.append(n)
        elif n % 3 == 1:
            async with db.transaction() as tx:
                await stack.users(tx).create(a_user(n))
                await stack.users(tx).create(a_user(1000 + n))
            returned.extend([n, 1000 + n])
        else:
            await stack.users(db).get_page(limit=10)

    async def work_until(n: int, moment: float | None) -> None:
        task = asyncio.create_task(work(n))
        if moment is not None:
            await asyncio.wait([task], timeout=moment)
            task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            assert moment is not None
        except DBAPIError as error:  # MariaDB may see a deadlock where rows are taken back
            if not can_repeat(error, committing=False):
                raise
            refused.add(n)

    async with stack.context(pool_size=size, max_overflow=overflow) as db:
        await asyncio.gather(*(work_until(n, chance.uniform(0, 0.3) if n % 5 else None) for n in range(200)))
        await settle()
        assert pool(db).checkedout() == 0
        stored = sorted(int(user.name.removeprefix("User ")) for user in await stack.users(db).get_page(limit=1000))
        assert set(returned) <= set(stored)
        assert {n for n in range(0, 200, 5) if n % 3 < 2} - refused <= set(returned), "nobody else was disturbed"
        assert len(refused) < 20
        assert refused.isdisjoint(stored)
        assert [n for n in stored if n % 3 == 1 and n < 1000] == [n - 1000 for n in stored if n >= 1000], "both or none"
        async with AsyncExitStack() as at_once:
            for _ in range(size + overflow):
                session = await at_once.enter_async_context(db.sessionmaker())
                assert len(list(await session.scalars(select(UserDb.id)))) == len(stored)
        await asyncio.gather(*(stack.users(db).create(a_user(2000 + n)) for n in range(size + overflow)))
    gc.collect()


class Crossing:
    """Two transactions that each change one of two rows, and then the other's: one of them has to give way."""

    def __init__(self, stack: Stack, db: DbContextAsync, ids: tuple[int, int]) -> None:
        self.stack = stack
        self.db = db
        self.ids = ids
        self.calls = 0
        self.arrived = 0

    @classmethod
    @asynccontextmanager
    async def prepared(cls, stack: Stack) -> AsyncIterator["Crossing"]:
        # PostgreSQL looks for a deadlock after a second; it may well look earlier
        options = {
            "postgresql+asyncpg": {"server_settings": {"deadlock_timeout": "50ms"}},
            "postgresql+psycopg": {"options": "-c deadlock_timeout=50ms"},
        }
        async with stack.context(connect_args=options.get(make_url(stack.url).drivername, {})) as db:
            one, two = await stack.users(db).create_many([a_user(1), a_user(2)])
            yield cls(stack, db, (one.id, two.id))

    async def change(self, tx: DbContextAsync, id: int) -> None:
        user = await self.stack.users(tx).get_by_id(id)
        assert user
        user.name += "!"
        await self.stack.users(tx).update(user)

    async def cross(self, tx: DbContextAsync, mine: int, theirs: int, *, catch: bool = False) -> str:
        self.calls += 1
        await self.change(tx, mine)
        self.arrived += 1
        await until(lambda: self.arrived >= 2)
        try:
            await self.change(tx, theirs)
        except DBAPIError:
            if not catch:
                raise
        return "crossed"

    async def transaction(self, mine: int, theirs: int, *, catch: bool = False) -> str:
        async with self.db.transaction() as tx:
            return await self.cross(tx, mine, theirs, catch=catch)

    async def both(self, one: Awaitable[str], two: Awaitable[str]) -> tuple[list[str], list[BaseException]]:
        """Return the results and the errors."""
        ended = await asyncio.wait_for(asyncio.gather(one, two, return_exceptions=True), 30)
        return [end for end in ended if isinstance(end, str)], [end for end in ended if isinstance(end, BaseException)]


class TestDeadlock:
    @ON_A_SERVER
    async def test_shows_itself_as_what_it_was(self, stack: Stack) -> None:
        async with Crossing.prepared(stack) as crossing:
            one, two = crossing.ids
            results, errors = await crossing.both(
                elsewhere(stack, crossing.transaction(one, two)), elsewhere(stack, crossing.transaction(two, one))
            )
            assert results == ["crossed"]
            assert len(errors) == 1
            error: Any = errors[0]
            if "mysql" in stack.url:
                assert isinstance(error, OperationalError)
                assert error.orig
                assert error.orig.args[0] == 1213
            else:
                assert isinstance(error, DBAPIError)
                assert getattr(error.orig, "sqlstate", None) == "40P01"
            assert await names(stack) == ["User 1!", "User 2!"]
            await crossing.change(crossing.db, one)

    @MYSQL
    async def test_that_is_caught_stores_no_half(self, stack: Stack) -> None:
        """MariaDB has undone what came before it, too; who goes on must not believe that it was stored."""
        async with Crossing.prepared(stack) as crossing:
            one, two = crossing.ids
            results, errors = await crossing.both(
                elsewhere(stack, crossing.transaction(one, two, catch=True)),
                elsewhere(stack, crossing.transaction(two, one, catch=True)),
            )
            assert results == ["crossed"]
            assert len(errors) == 1
            assert isinstance(errors[0], InvalidRequestError)
            assert "invalid transaction is rolled back" in str(errors[0])
            assert await names(stack) == ["User 1!", "User 2!"]


async def run[T](
    stack: Stack, db: DbContextAsync, work: Callable[[DbContextAsync], Awaitable[T]], attempts: int = 5
) -> T:
    """db.run; the sync one in a thread, with the same asynchronous work."""
    if stack.is_async:
        return await db.run(work, attempts)

    async def adapted(tx: DbContext) -> T:
        return await work(cast(DbContextAsync, AwaitableContext(tx)))

    target: DbContext = cast(Any, db).target
    return await asyncio.to_thread(target.run, lambda tx: asyncio.run(adapted(tx)), attempts)


@asynccontextmanager
async def cut_at_commit(url: str, *, stored: bool) -> AsyncIterator[str]:
    """A way to the server that is cut when COMMIT goes by, before or after the server has done it."""
    server = make_url(url)

    async def serve(from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(server.host, server.port)

        async def answer() -> None:
            while data := await from_server.read(65536):
                to_client.write(data)

        answers = asyncio.create_task(answer())
        while data := await from_client.read(65536):
            if re.search(rb"(?<!AUTO)COMMIT", data):
                answers.cancel()
                await asyncio.wait([answers])
                if stored:
                    to_server.write(data)
                    await from_server.read(1)
                break
            to_server.write(data)
        for way in (to_client, to_server):
            way.close()
        await asyncio.wait([answers])

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with proxy:
        yield server.set(port=proxy.sockets[0].getsockname()[1]).render_as_string(hide_password=False)


class TestRun:
    @ON_A_SERVER
    async def test_repeats_after_a_deadlock(self, stack: Stack) -> None:
        async with Crossing.prepared(stack) as crossing:
            one, two = crossing.ids
            results, errors = await crossing.both(
                run(stack, crossing.db, lambda tx: crossing.cross(tx, one, two)),
                run(stack, crossing.db, lambda tx: crossing.cross(tx, two, one)),
            )
            assert (results, errors, crossing.calls) == (["crossed", "crossed"], [], 3)
            assert await names(stack) == ["User 1!!", "User 2!!"]

    async def test_repeats_after_a_row_changed(self, stack: Stack, db: DbContextAsync) -> None:
        mine = await stack.users(db).create(a_user())
        theirs = await stack.users(db).get_by_id(mine.id)
        assert theirs
        theirs.name = "theirs"
        await stack.users(db).update(theirs)
        read = [mine]

        async def work(tx: DbContextAsync) -> str:
            user = read.pop() if read else await stack.users(tx).get_by_id(mine.id)
            assert user
            before, user.name = user.name, "mine"
            await stack.users(tx).update(user)
            return before

        assert await run(stack, db, work) == "theirs"
        assert await names(stack) == ["mine"]

    @ON_A_SERVER
    async def test_repeats_after_a_lost_connection(self, stack: Stack, db: DbContextAsync) -> None:
        calls = []

        async def work(tx: DbContextAsync) -> UserDb:
            calls.append(tx)
            await stack.users(tx).create(a_user(1))
            if len(calls) == 1:
                hang_up(stack, await connection_of(stack, tx))
            return await stack.users(tx).create(a_user(2))

        assert (await run(stack, db, work)).name == "User 2"
        assert len(calls) == 2
        assert await names(stack) == ["User 1", "User 2"]

    @pytest.mark.parametrize("stored", [False, True])
    @ON_A_SERVER
    async def test_does_not_repeat_what_may_be_stored(self, stack: Stack, stored: bool) -> None:
        calls = []

        async def work(tx: DbContextAsync) -> None:
            calls.append(tx)
            await stack.users(tx).create(a_user(len(calls)))

        async with cut_at_commit(stack.url, stored=stored) as url:
            way = Stack(url, is_async=stack.is_async)
            async with way.context() as db:
                with pytest.raises(DBAPIError) as caught:
                    await run(way, db, work)
        assert caught.value.connection_invalidated
        assert len(calls) == 1
        assert await names(stack) == (["User 1"] if stored else [])

    async def test_does_not_repeat_what_would_fail_again(self, stack: Stack, db: DbContextAsync) -> None:
        await stack.users(db).create(a_user(1))
        calls = []

        async def duplicate(tx: DbContextAsync) -> None:
            calls.append(tx)
            await stack.users(tx).create(a_user(1))

        async def refuse(tx: DbContextAsync) -> None:
            calls.append(tx)
            await stack.users(tx).create(a_user(2, name=""))

        with pytest.raises(IntegrityError):
            await run(stack, db, duplicate)
        with pytest.raises(ValueError, match="name must be"):
            await run(stack, db, refuse)
        assert len(calls) == 2

    @pytest.mark.parametrize("attempts", [1, 3])
    async def test_gives_up_with_the_last_error_as_it_was(
        self, stack: Stack, db: DbContextAsync, attempts: int
    ) -> None:
        errors: list[StaleDataError] = []

        async def work(tx: DbContextAsync) -> None:
            await stack.users(tx).create(a_user(len(errors)))
            errors.append(StaleDataError("changed"))
            raise errors[-1]

        with pytest.raises(StaleDataError) as caught:
            await run(stack, db, work, attempts)
        assert len(errors) == attempts
        assert caught.value is errors[-1]
        assert await names(stack) == []

    async def test_leaves_it_to_the_outermost_transaction(self, stack: Stack, db: DbContextAsync) -> None:
        """After a conflict, a part of a transaction can't succeed on its own."""
        calls = []

        async def work(tx: DbContextAsync) -> None:
            calls.append(tx)
            raise StaleDataError("changed")

        with pytest.raises(StaleDataError):
            async with db.transaction() as tx:
                await run(stack, tx, work)
        assert len(calls) == 1
