"""What a call costs, counted and not timed: round trips, statements, thread hops, rows read, packages imported."""

import json
import selectors
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from threading import Event, Thread
from typing import Any, Self, cast

import aiosqlite
import pytest
from sqlalchemy import Connection, create_engine, delete, event, make_url, select
from sqlalchemy.engine.interfaces import ExecuteStyle
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, selectinload, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from database.context import DbContext
from database.context_async import DbContextAsync
from database.models import UserDb
from repositories.user_repository import UserRepository
from repositories.user_repository_async import UserRepositoryAsync
from tests.stacks import Stack, sync_engine
from tests.test_contract import a_user
from tests.test_demo import ROOT, Command, run, to
from tests.test_traps import MYSQL

POSTGRES = pytest.mark.parametrize("stack", ["asyncpg", "psycopg", "psycopg_async"], indirect=True)
AIOSQLITE = pytest.mark.parametrize("stack", ["aiosqlite"], indirect=True)

type Counts = dict[str, int]


def received(end: socket.socket) -> bytes:
    try:
        return end.recv(65536)
    except ConnectionResetError:
        return b""  # hung up, without ceremony


class Proxy:
    """Stands between a client and a server, and counts the round trips: how often the server is asked anew.

    What the client sends in several pieces before an answer is one.
    """

    def __init__(self, host: str, port: int) -> None:
        self.server = (host, port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.round_trips = 0
        self.connections = 0
        self.ended = Event()
        self.thread = Thread(target=self.run)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def run(self) -> None:
        peers: dict[socket.socket, socket.socket] = {}
        clients: set[socket.socket] = set()
        asked: set[socket.socket] = set()  # the clients that wait for an answer
        with selectors.DefaultSelector() as selector, self.listener:
            selector.register(self.listener, selectors.EVENT_READ)
            while not self.ended.is_set():
                for key, _ in selector.select(0.05):
                    end = cast(socket.socket, key.fileobj)
                    if end is self.listener:
                        client, server = self.listener.accept()[0], socket.create_connection(self.server)
                        self.connections += 1
                        clients.add(client)
                        peers |= {client: server, server: client}
                        for opened in (client, server):
                            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                            selector.register(opened, selectors.EVENT_READ)
                    elif end not in peers:
                        continue  # closed a moment ago, with its peer
                    elif data := received(end):
                        if end not in clients:
                            asked.discard(peers[end])
                        elif end not in asked:
                            asked.add(end)
                            self.round_trips += 1
                        peers[end].sendall(data)
                    else:
                        for closed in (end, peers[end]):
                            selector.unregister(closed)
                            del peers[closed]
                            closed.close()
        for left in peers:
            left.close()

    async def count(self, call: Awaitable[Any]) -> int:
        before = self.round_trips
        await call
        return self.round_trips - before


@pytest.fixture
def proxy(stack: Stack) -> Iterator[Proxy]:
    address = make_url(stack.url)
    assert address.host
    assert address.port
    with Proxy(address.host, address.port) as proxy:
        yield proxy


@pytest.fixture
async def db(stack: Stack, request: pytest.FixtureRequest) -> AsyncIterator[DbContextAsync]:
    """The context under test; through the proxy, in a test that has one."""
    if "proxy" in request.fixturenames:
        port = request.getfixturevalue("proxy").listener.getsockname()[1]
        url = make_url(stack.url).set(host="127.0.0.1", port=port)
        stack = Stack(url, is_async=stack.is_async)
    async with stack.context() as db:
        yield db


async def costs(users: UserRepositoryAsync, count: Callable[[Awaitable[Any]], Awaitable[int]]) -> Counts:
    """What each call costs on a connection that is warm, which has prepared its statements."""
    found: Counts = {}
    for n in range(10):
        user = a_user(n)
        found["create"] = await count(users.create(user))
        found["get_by_id"] = await count(users.get_by_id(user.id))
        found["get_by_email"] = await count(users.get_by_email(user.email))
        found["get_page"] = await count(users.get_page())
        user.name = "Ada"
        found["update"] = await count(users.update(user))
        found["delete"] = await count(users.delete(user.id))
    return found


@POSTGRES
async def test_a_read_is_one_round_trip_and_a_write_is_three(users: UserRepositoryAsync, proxy: Proxy) -> None:
    reads, writes = ("get_by_id", "get_by_email", "get_page"), ("create", "update", "delete")
    assert await costs(users, proxy.count) == dict.fromkeys(reads, 1) | dict.fromkeys(writes, 3)
    assert proxy.connections <= 2, "the calls share a connection; the dialect may have used another to look around"


@POSTGRES
async def test_each_relationship_is_one_more_round_trip(users: UserRepositoryAsync, proxy: Proxy) -> None:
    user = await users.create(a_user())
    for _ in range(10):
        one = await proxy.count(users.get_by_id(user.id, selectinload(UserDb.salaries)))
        both = await proxy.count(users.get_page(selectinload(UserDb.salaries), selectinload(UserDb.tax_account)))
    assert (one, both) == (2, 3)


@POSTGRES
async def test_reads_in_a_transaction_see_its_writes_and_others_do_not(
    stack: Stack, db: DbContextAsync, users: UserRepositoryAsync, proxy: Proxy
) -> None:
    await users.get_page()
    async with db.transaction() as tx:
        mine = stack.users(tx)
        user = await mine.create(a_user())
        for reader, seen in ((mine, [user.id]), (users, [])):
            page, by_id, by_email = (
                await reader.get_page(),
                await reader.get_by_id(user.id),
                await reader.get_by_email(user.email),
            )
            assert [found.id for found in page] == seen
            assert [found.id for found in (by_id, by_email) if found] == seen * 2
    assert await proxy.count(users.get_page()) == 1, "the connection reads without a transaction again"


@POSTGRES
async def test_a_connection_is_checked_only_after_a_second_without_use(
    db: DbContextAsync, users: UserRepositoryAsync, proxy: Proxy
) -> None:
    for _ in range(10):
        await users.get_page()
    assert await proxy.count(users.get_page()) == 1

    def age(_: object, record: ConnectionPoolEntry) -> None:
        record.info["used"] -= 1.5  # seconds

    event.listen(sync_engine(db), "checkin", age)
    await users.get_page()
    event.remove(sync_engine(db), "checkin", age)
    checked = await proxy.count(users.get_page())
    assert checked > 1
    assert await proxy.count(users.get_page()) == 1
    assert proxy.connections <= 2, "it was checked, not replaced"


async def bare_costs(url: str, is_async: bool, count: Callable[[Awaitable[Any]], Awaitable[int]]) -> Counts:
    """The costs of sessions as SQLAlchemy's pages write them."""

    class Bare:
        """Begins a session for each call, and works on it in the same way for sync and async."""

        def __init__(self) -> None:
            if is_async:
                self.engine: Any = create_async_engine(url, pool_pre_ping=True)
                self.sessions: Any = async_sessionmaker(self.engine, expire_on_commit=False)
            else:
                self.engine = create_engine(url, pool_pre_ping=True)
                self.sessions = sessionmaker(self.engine, expire_on_commit=False)

        async def call(self, work: Callable[[Session], Any]) -> Any:
            if is_async:
                async with self.sessions.begin() as session:
                    return await session.run_sync(work)
            with self.sessions.begin() as session:
                return work(session)

        async def create(self, user: UserDb) -> None:
            await self.call(lambda session: session.add(user))

        update = create

        async def get_by_id(self, id: int) -> None:
            await self.call(lambda session: session.get(UserDb, id))

        async def get_by_email(self, email: str) -> None:
            await self.call(lambda session: session.scalars(select(UserDb).where(UserDb.email == email)).one_or_none())

        async def get_page(self) -> None:
            await self.call(lambda session: list(session.scalars(select(UserDb).order_by(UserDb.id).limit(100))))

        async def delete(self, id: int) -> None:
            await self.call(lambda session: session.execute(delete(UserDb).where(UserDb.id == id)))

    bare: Any = Bare()
    found = await costs(bare, count)
    disposed = bare.engine.dispose()
    if is_async:
        await disposed
    return found


@MYSQL
async def test_mariadb_takes_no_more_round_trips_than_a_bare_session(
    stack: Stack, db: DbContextAsync, users: UserRepositoryAsync, proxy: Proxy
) -> None:
    ours = await costs(users, proxy.count)
    url = sync_engine(db).url.render_as_string(hide_password=False)
    bare = await bare_costs(url, stack.is_async, proxy.count)
    assert {call for call in ours if ours[call] > bare[call]} == set(), (ours, bare)


@AIOSQLITE
async def test_aiosqlite_hops_to_its_thread_six_times_at_most(
    users: UserRepositoryAsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    hops = 0
    execute: Any = aiosqlite.Connection._execute

    async def count_and_execute(connection: aiosqlite.Connection, function: Any, *args: Any, **options: Any) -> Any:
        nonlocal hops
        hops += 1
        return await execute(connection, function, *args, **options)

    async def count(call: Awaitable[Any]) -> int:
        before = hops
        await call
        return hops - before

    monkeypatch.setattr(aiosqlite.Connection, "_execute", count_and_execute)
    found = await costs(users, count)
    assert min(found.values()) > 0, "nothing was counted"
    assert max(found.values()) <= 6, found


async def test_create_many_takes_a_handful_of_statements(db: DbContextAsync, users: UserRepositoryAsync) -> None:
    sent = 0

    def count(_c: Connection, _cursor: Any, _sql: str, parameters: Any, context: Any, _many: bool) -> None:
        nonlocal sent  # executemany sends a statement for each row, unless the driver knows better
        sent += len(parameters) if context.execute_style is ExecuteStyle.EXECUTEMANY else 1

    event.listen(sync_engine(db), "before_cursor_execute", count)
    created = await users.create_many(a_user(n) for n in range(10_000))
    assert sent <= 50
    assert len({user.id for user in created}) == 10_000


def rows_read(connection: Connection, query: str, parameters: Any) -> tuple[int, str]:
    """How many rows the database reads for a query (on SQLite, how many steps it takes), and by what plan."""
    if connection.dialect.name == "sqlite":
        steps = 0

        def step() -> None:
            nonlocal steps
            steps += 1

        driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(step, 1)
        connection.exec_driver_sql(query, parameters).all()
        driver.set_progress_handler(None, 1)
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", parameters).all()
        return steps, str(plan)
    if connection.dialect.name == "postgresql":
        node = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", parameters).scalar_one()[0]["Plan"]
        while "Plans" in node:
            node = node["Plans"][0]
        return int(node["Actual Rows"] + node.get("Rows Removed by Filter", 0)), str(node)
    connection.exec_driver_sql("FLUSH STATUS")
    connection.exec_driver_sql(query, parameters).all()
    reads = connection.exec_driver_sql("SHOW SESSION STATUS LIKE 'Handler_read%%'").all()
    return sum(int(row[1]) for row in reads), str(connection.exec_driver_sql(f"EXPLAIN {query}", parameters).all())


@pytest.mark.parametrize(
    ("driver", "primary_key"),
    [("sqlite", "INTEGER PRIMARY KEY"), ("postgresql+psycopg", "pk_users"), ("mysql+pymysql", "'PRIMARY'")],
)
def test_a_page_far_out_reads_no_more_rows_than_the_first(
    new_url: Callable[[str], str], driver: str, primary_key: str
) -> None:
    with DbContext(new_url(driver)) as db:
        db.create_all()
        users = UserRepository(db)
        ids = [user.id for user in users.create_many(a_user(n) for n in range(10_000))]
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE TABLE users" if driver.startswith("mysql") else "ANALYZE users")
        queries: list[tuple[str, Any]] = []

        def see(_connection: Connection, _cursor: Any, query: str, parameters: Any, *_: Any) -> None:
            queries.append((query, parameters))

        event.listen(db.engine, "before_cursor_execute", see)
        assert len(users.get_page()) == len(users.get_page(after_id=ids[-201])) == 100
        event.remove(db.engine, "before_cursor_execute", see)
        with db.engine.connect() as connection:
            (first, _), (far_out, how) = (rows_read(connection, *query) for query in queries)
        assert primary_key in how
        assert 100 <= far_out <= first


# mako takes pygments if it is there (pytest brings it); cython_runtime is a part of compiled packages
PACKAGES = {
    "alembic",
    "greenlet",
    "mako",
    "markupsafe",
    "sqlalchemy",
    "typing_extensions",
    "pygments",
    "cython_runtime",
}


@pytest.mark.parametrize(
    ("driver", "drivers"),
    [
        ("sqlite+aiosqlite", {"aiosqlite"}),
        ("postgresql+asyncpg", {"asyncpg", "psycopg", "psycopg_binary"}),
        ("mysql+aiomysql", {"aiomysql", "pymysql"}),
    ],
)
def test_the_demo_imports_the_drivers_of_its_own_database_only(
    new_url: Callable[[str], str], driver: str, drivers: set[str]
) -> None:
    code = "import json, runpy, sys; runpy.run_path('main.py', run_name='__main__'); print(json.dumps([*sys.modules]))"
    out = run(Command((sys.executable, "-c", code), to(new_url(driver)))).succeeded()
    modules = {name.partition(".")[0] for name in json.loads(out.splitlines()[-1])}
    ours = {path.stem for path in ROOT.iterdir()} | {"__main__"}
    assert {name for name in modules - sys.stdlib_module_names - ours if not name.startswith("_")} <= PACKAGES | drivers
    assert drivers <= modules
