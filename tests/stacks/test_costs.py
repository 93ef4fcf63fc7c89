"""What calls cost, counted instead of timed: round trips, and the plan of a query."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from sqlalchemy import event, insert, text

from database.context_async import DbContextAsync as Db
from database.models import UserDb
from repositories.user_repository_async import UserRepositoryAsync as Users
from tests.conftest import SERVERS_ASYNC
from tests.proxy import Proxy, proxy_to

EXPLAIN = {
    "sqlite": "EXPLAIN QUERY PLAN",
    "postgresql": "EXPLAIN (COSTS OFF)",
    "mysql": "EXPLAIN",
}
# What the plan says if the query goes by the primary key.
BY_PRIMARY_KEY = {
    "sqlite": "USING INTEGER PRIMARY KEY (rowid>?)",
    "postgresql": "Index Cond: (id > ",
    "mysql": "'range', 'PRIMARY'",
}


on_a_server = pytest.mark.parametrize("url", SERVERS_ASYNC, indirect=True)


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    with proxy_to(url) as proxy:
        yield proxy


@pytest.fixture
async def proxied(proxy: Proxy) -> AsyncIterator[Db]:
    async with Db(proxy.url) as db:
        yield db


@on_a_server
async def test_round_trips(proxy: Proxy, proxied: Db) -> None:
    """On MySQL a read is three: the statement and two ROLLBACKs.

    SQLAlchemy sends one for the session and one for the pool. A bare session costs
    the same.
    """
    users = Users(proxied)
    costs = dict[str, int]()
    seen = 0

    def note(call: str) -> None:
        nonlocal seen
        costs[call] = proxy.round_trips - seen
        seen = proxy.round_trips

    # The drivers prepare a statement the first few times. The last time counts.
    for number in range(10):
        note("start")
        user = await users.create(UserDb(name="A", email=f"{number}@x"))
        note("create")
        await users.get_by_id(user.id)
        note("get_by_id")
        await users.get_by_email(user.email)
        note("get_by_email")
        await users.get_page()
        note("get_page")
        user.name = "B"
        await users.update(user)
        note("update")
        async with proxied.transaction() as session:
            found: Any = await Users(session).get_by_id(user.id)
            found.name = "C"
            await Users(session).update(found)
        note("read, then update")
        await users.delete(user.id)
        note("delete")

    read = 1 if "postgresql" in proxy.url else 3
    reads = dict.fromkeys(["get_by_id", "get_by_email", "get_page"], read)
    writes = dict.fromkeys(["create", "update", "delete"], 3)
    assert costs == {"start": 0, **reads, **writes, "read, then update": 4}
    # A dialect may have used a second connection to look around.
    assert proxy.connections <= 2


@on_a_server
async def test_a_connection_is_pinged_only_after_an_idle_second(
    proxy: Proxy, proxied: Db
) -> None:
    users = Users(proxied)

    async def cost() -> int:
        before = proxy.round_trips
        await users.get_page()
        return proxy.round_trips - before

    used = [await cost() for _ in range(10)][-1]
    await asyncio.sleep(1.1)
    idle = await cost()
    connections = proxy.connections
    assert used < idle
    assert await cost() == used
    assert proxy.connections == connections


async def test_a_far_page_has_the_plan_of_the_first_page(db: Db, users: Users) -> None:
    rows = [{"name": "A", "email": f"{number}@x"} for number in range(5000)]
    async with db.transaction() as session:
        await session.execute(insert(UserDb), rows)
    last = (await users.get_page(limit=5000))[-1].id
    queries: list[Any] = []
    engine = db.engine.sync_engine
    event.listen(
        engine, "before_cursor_execute", lambda *args: queries.append(args[2:4])
    )
    for after_id in (last - 5000, last - 100):
        assert len(await users.get_page(after_id=after_id)) == 100

    name = engine.dialect.name
    plans = []
    async with db.transaction() as session:
        if name != "sqlite":
            table = "TABLE users" if name == "mysql" else "users"
            await session.execute(text(f"ANALYZE {table}"))
        connection = await session.connection()
        for query, values in queries[:2]:
            plan = await connection.exec_driver_sql(f"{EXPLAIN[name]} {query}", values)
            plans.append(re.sub(r"\d+", "n", str(plan.all())))
    first, far = plans
    assert first == far
    assert BY_PRIMARY_KEY[name] in first
