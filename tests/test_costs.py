"""What a call costs, counted and not timed: round trips, thread hops, and the plan of a query."""

import re
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from select import select
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any, cast

import aiosqlite
import pytest
from sqlalchemy import event, make_url

from database.context_async import DbContextAsync as Db
from database.models import UserDb
from repositories.user_repository_async import UserRepositoryAsync as Users
from tests.stacks import Stack, sync_engine
from tests.test_contract import a_user

SERVERS = ["asyncpg", "psycopg", "psycopg_async", "pymysql", "aiomysql", "asyncmy"]
ON_A_SERVER = pytest.mark.parametrize("stack", SERVERS, indirect=True)
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
    """What connects to the stack from now on goes through the proxy."""
    with Proxy(("127.0.0.1", 0), Relay) as proxy:
        url = make_url(stack.url)
        proxy.database = (url.host, url.port)
        stack.url = url.set(host="127.0.0.1", port=proxy.server_address[1]).render_as_string(hide_password=False)
        Thread(target=proxy.serve_forever, args=[0.01]).start()
        yield proxy
        proxy.shutdown()


async def costs(stack: Stack, db: Db, count: Callable[[Awaitable[Any]], Awaitable[int]]) -> dict[str, int]:
    """What each call costs on a connection that is warm, which has prepared its statements."""
    users, found = stack.users(db), {}

    async def read_then_update(id: int) -> None:
        async with db.transaction() as tx:
            user = cast(UserDb, await stack.users(tx).get_by_id(id))
            user.name += "!"
            await stack.users(tx).update(user)

    for n in range(10):
        user = a_user(n)
        found["create"] = await count(users.create(user))
        found["by_id"] = await count(users.get_by_id(user.id))
        found["by_email"] = await count(users.get_by_email(user.email))
        found["page"] = await count(users.get_page())
        user.name = "Ada"
        found["update"] = await count(users.update(user))
        found["read, then update"] = await count(read_then_update(user.id))
        found["delete"] = await count(users.delete(user.id))
    return found


@ON_A_SERVER
async def test_round_trips_to_a_server(stack: Stack, proxy: Proxy, db: Db) -> None:
    """On MySQL a read ends with two ROLLBACKs, the session's and the pool's, as that of a bare session does."""
    read = 3 if "mysql" in stack.url else 1
    calls = dict.fromkeys(("create", "update", "delete"), 3) | dict.fromkeys(("by_id", "by_email", "page"), read)
    assert await costs(stack, db, proxy.count) == {**calls, "read, then update": 4}
    assert proxy.connections <= 2, "the calls share a connection; the dialect may have used another to look around"


@ON_A_SERVER
async def test_a_connection_is_pinged_only_after_a_second_without_use(proxy: Proxy, db: Db, users: Users) -> None:
    warm = [await proxy.count(users.get_page()) for _ in range(10)]
    event.listen(sync_engine(db), "checkin", lambda _, record: record.info.update(used=record.info["used"] - 1.5))
    used, idle = [await proxy.count(users.get_page()) for _ in range(2)]
    assert used == warm[-1] < idle
    assert proxy.connections <= 2, "it was pinged, not replaced"


@pytest.mark.parametrize("stack", ["aiosqlite"], indirect=True)
async def test_aiosqlite_hops_to_its_thread_six_times(stack: Stack, db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    hops = Counter[str]()
    execute: Any = aiosqlite.Connection._execute

    async def count(call: Awaitable[Any]) -> int:
        hops.clear()
        await call
        return hops.total()

    monkeypatch.setattr(aiosqlite.Connection, "_execute", lambda *a, **o: hops.update("x") or execute(*a, **o))
    found = await costs(stack, db, count)
    assert found.pop("read, then update") <= 12, "COMMIT and BEGIN IMMEDIATE go in one call"
    assert {call: n for call, n in found.items() if not 0 < n <= 6} == {}


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
