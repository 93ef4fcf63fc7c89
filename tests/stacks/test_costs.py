"""What calls cost, counted instead of timed: round trips, and the plan of a query."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from sqlalchemy import event, insert, text

from database.models import UserDb
from tests.conftest import SERVERS_ASYNC
from tests.models import a_user
from tests.proxy import Proxy, proxy_to
from tests.stacks.helpers import Db, Users, read

# How to ask for a plan, and what it says if the query goes by the primary key.
PLANS = {
    "sqlite": ("EXPLAIN QUERY PLAN", "USING INTEGER PRIMARY KEY (rowid>?)"),
    "postgresql": ("EXPLAIN (COSTS OFF)", "Index Cond: (id > "),
    "mysql": ("EXPLAIN", "'range', 'PRIMARY'"),
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


async def cost(proxy: Proxy, call: Any, *values: Any) -> int:
    before = proxy.round_trips
    await call(*values)
    return proxy.round_trips - before


@on_a_server
async def test_round_trips(proxy: Proxy, proxied: Db) -> None:
    async def read_then_update(id: int) -> None:
        async with proxied.transaction() as session:
            found = await read(Users(session), id)
            found.name = "C"
            await Users(session).update(found)

    users = Users(proxied)
    # The drivers prepare a statement the first few times. The last time counts.
    for number in range(10):
        user = a_user(number)
        writes = [await cost(proxy, users.create, user)]
        reads = [
            await cost(proxy, users.get_by_id, user.id),
            await cost(proxy, users.get_by_email, user.email),
            await cost(proxy, users.get_page),
        ]
        user.name = "B"
        writes.append(await cost(proxy, users.update, user))
        both = await cost(proxy, read_then_update, user.id)
        writes.append(await cost(proxy, users.delete, user.id))

    # On MySQL, the session and the pool each add a ROLLBACK, as in a bare session.
    assert reads == [1 if "postgresql" in proxy.url else 3] * 3
    assert writes == [3, 3, 3]
    assert both == 4
    # A dialect may have used a second connection to look around.
    assert proxy.connections <= 2


@on_a_server
async def test_a_connection_is_pinged_only_after_an_idle_second(
    proxy: Proxy, proxied: Db
) -> None:
    users = Users(proxied)
    for _ in range(10):
        used = await cost(proxy, users.get_page)
    connections = proxy.connections
    await asyncio.sleep(1.1)
    assert await cost(proxy, users.get_page) > used
    assert await cost(proxy, users.get_page) == used
    assert proxy.connections == connections


async def test_a_far_page_has_the_plan_of_the_first_page(db: Db, users: Users) -> None:
    engine = db.engine.sync_engine
    explain, by_primary_key = PLANS[engine.dialect.name]
    table = "TABLE users" if engine.dialect.name == "mysql" else "users"
    rows = [{"name": "A", "email": f"{number}@x"} for number in range(5000)]
    async with db.transaction() as session:
        await session.execute(insert(UserDb), rows)
        await session.execute(text(f"ANALYZE {table}"))
    last = (await users.get_page(limit=5000))[-1].id
    sent: list[Any] = []
    event.listen(engine, "before_cursor_execute", lambda *args: sent.append(args[2:4]))
    for after_id in (last - 5000, last - 100):
        assert len(await users.get_page(after_id=after_id)) == 100

    plans = []
    async with db.engine.connect() as connection:
        for query, values in sent[:2]:
            plan = await connection.exec_driver_sql(f"{explain} {query}", values)
            plans.append(re.sub(r"\d+", "n", str(plan.all())))
    assert plans[0] == plans[1]
    assert by_primary_key in plans[0]
