"""What a call costs, counted and not timed: round trips, thread hops, and the plan of a query."""

import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from select import select
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any, cast

import aiosqlite
import pytest
from sqlalchemy import event, make_url
from sqlalchemy.orm import selectinload
from sqlalchemy.pool import ConnectionPoolEntry

from database.context_async import DbContextAsync as Db
from database.models import UserDb
from repositories.user_repository_async import UserRepositoryAsync as Users
from tests.stacks import Stack, sync_engine
from tests.test_contract import a_user

POSTGRES = pytest.mark.parametrize("stack", ["asyncpg", "psycopg", "psycopg_async"], indirect=True)
MYSQL = pytest.mark.parametrize("stack", ["pymysql", "aiomysql", "asyncmy"], indirect=True)
PLANS = [  # how each database shows the plan of a query, and what it says where it goes by the primary key
    ("sqlite", "EXPLAIN QUERY PLAN", "USING INTEGER PRIMARY KEY (rowid>?)"),
    ("psycopg", "EXPLAIN (COSTS OFF)", "Index Cond: (id > "),
    ("pymysql", "EXPLAIN", "'range', 'PRIMARY'"),
]


class Relay(BaseRequestHandler):
    """One connection through the proxy."""

    def handle(self) -> None:
        client, proxy = self.request, cast(Proxy, self.server)
        proxy.connections += 1
        with socket.create_connection(proxy.database) as database, suppress(ConnectionResetError):
            others, asked = {client: database, database: client}, False
            for end in others:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                for end in select(others, [], [])[0]:
                    data = end.recv(65536)
                    if not data:
                        return
                    proxy.round_trips += end is client and not asked
                    asked = end is client
                    others[end].sendall(data)


class Proxy(ThreadingTCPServer):
    """Stands between clients and a database, and counts round trips: all that is sent before an answer is one."""

    daemon_threads = True
    connections = round_trips = 0
    database: tuple[str | None, int | None]

    async def count(self, call: Awaitable[Any]) -> int:
        before = self.round_trips
        await call
        return self.round_trips - before


@pytest.fixture
def proxy(stack: Stack) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", 0), Relay) as proxy:
        proxy.database = (make_url(stack.url).host, make_url(stack.url).port)
        Thread(target=proxy.serve_forever, args=[0.01]).start()
        yield proxy
        proxy.shutdown()


@pytest.fixture
async def db(stack: Stack, request: pytest.FixtureRequest) -> AsyncIterator[Db]:
    """The context under test; through the proxy, in a test that has one."""
    if "proxy" in request.fixturenames:
        port = request.getfixturevalue("proxy").server_address[1]
        stack = Stack(make_url(stack.url).set(host="127.0.0.1", port=port), is_async=stack.is_async)
    async with stack.context() as db:
        yield db


async def costs(stack: Stack, db: Db, count: Callable[[Awaitable[Any]], Awaitable[int]]) -> dict[str, int]:
    """What each call costs on a connection that is warm, which has prepared its statements."""
    users, found = stack.users(db), {}

    async def read_then_update(id: int) -> None:
        async with db.transaction() as tx:
            user = await stack.users(tx).get_by_id(id)
            assert user
            user.name += "!"
            await stack.users(tx).update(user)

    for n in range(10):
        user = a_user(n)
        found["create"] = await count(users.create(user))
        found["get_by_id"] = await count(users.get_by_id(user.id))
        found["get_by_email"] = await count(users.get_by_email(user.email))
        found["get_page"] = await count(users.get_page())
        user.name = "Ada"
        found["update"] = await count(users.update(user))
        found["read, then update"] = await count(read_then_update(user.id))
        found["delete"] = await count(users.delete(user.id))
    return found


def expected(read: int, write: int, both: int) -> dict[str, int]:
    calls = {**dict.fromkeys(("get_by_id", "get_by_email", "get_page"), read), "read, then update": both}
    return calls | dict.fromkeys(("create", "update", "delete"), write)


@POSTGRES
async def test_postgresql_reads_in_one_round_trip_and_writes_in_three(stack: Stack, db: Db, proxy: Proxy) -> None:
    assert await costs(stack, db, proxy.count) == expected(read=1, write=3, both=4)
    assert proxy.connections <= 2, "the calls share a connection; the dialect may have used another to look around"


@MYSQL
async def test_mariadb_takes_three_round_trips_at_most(stack: Stack, db: Db, proxy: Proxy) -> None:
    found, most = await costs(stack, db, proxy.count), expected(read=3, write=3, both=4)
    assert {call: n for call, n in found.items() if n > most[call]} == {}


@POSTGRES
async def test_each_relationship_is_one_more_round_trip(users: Users, proxy: Proxy) -> None:
    await users.create(a_user())
    options = (selectinload(UserDb.salaries), selectinload(UserDb.tax_account))
    found = [[await proxy.count(users.get_page(*options[:n])) for n in range(3)] for _ in range(10)]
    assert found[-1] == [1, 2, 3]


@pytest.mark.parametrize(
    "stack", ["asyncpg", "psycopg", "psycopg_async", "pymysql", "aiomysql", "asyncmy"], indirect=True
)
async def test_a_connection_is_pinged_only_after_a_second_without_use(db: Db, users: Users, proxy: Proxy) -> None:
    def age(_: object, record: ConnectionPoolEntry) -> None:
        record.info["used"] -= 1.5  # seconds

    warm = [await proxy.count(users.get_page()) for _ in range(10)]
    event.listen(sync_engine(db), "checkin", age)
    await users.get_page()
    event.remove(sync_engine(db), "checkin", age)
    assert await proxy.count(users.get_page()) > warm[-1]
    assert await proxy.count(users.get_page()) == warm[-1]
    assert proxy.connections <= 2, "it was pinged, not replaced"


@pytest.mark.parametrize("stack", ["aiosqlite"], indirect=True)
async def test_aiosqlite_hops_to_its_thread_six_times(stack: Stack, db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    hops: list[object] = []
    execute: Any = aiosqlite.Connection._execute

    def count_and_execute(*args: Any, **options: Any) -> Any:
        hops.append(args)
        return execute(*args, **options)

    async def count(call: Awaitable[Any]) -> int:
        hops.clear()
        await call
        return len(hops)

    monkeypatch.setattr(aiosqlite.Connection, "_execute", count_and_execute)
    found = await costs(stack, db, count)
    assert {call: n for call, n in found.items() if call != "read, then update" and not 0 < n <= 6} == {}


@pytest.mark.parametrize(("stack", "explain", "by_primary_key"), PLANS, indirect=["stack"])
async def test_a_page_far_out_has_the_plan_of_the_first(
    stack: Stack, db: Db, users: Users, explain: str, by_primary_key: str
) -> None:
    queries: list[tuple[str, Any]] = []
    ids = [user.id for user in await users.create_many(a_user(n) for n in range(5_000))]
    event.listen(sync_engine(db), "before_cursor_execute", lambda *args: queries.append(args[2:4]))
    for after_id in (0, ids[-101]):
        assert len(await users.get_page(after_id=after_id)) == 100
    with stack.sync(isolation_level="AUTOCOMMIT") as sync, sync.engine.connect() as connection:
        connection.exec_driver_sql(f"ANALYZE {'TABLE' if 'mysql' in stack.url else ''} users")
        plans = [str(connection.exec_driver_sql(f"{explain} {query}", values).all()) for query, values in queries]
    first, far_out = [re.sub(r"\d+", "n", plan) for plan in plans]
    assert first == far_out
    assert by_primary_key in first
