"""What calls cost, in round trips to the server."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.conftest import SERVERS_ASYNC
from tests.models import a_user
from tests.proxy import Proxy, proxy_to
from tests.stacks.helpers import Db, Users, read

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
            (await read(Users(session), id)).name = "C"

    users = Users(proxied)
    reads, writes, both = [0], [0], 0
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


@on_a_server
async def test_only_idle_connections_are_pinged(proxy: Proxy, proxied: Db) -> None:
    users, used = Users(proxied), 0
    for _ in range(10):
        used = await cost(proxy, users.get_page)
    connections = proxy.connections
    await asyncio.sleep(1.1)
    assert await cost(proxy, users.get_page) > used
    assert await cost(proxy, users.get_page) == used
    assert proxy.connections == connections
