"""Measure how fast the template is beside a bare session and other libraries.

    uv run --no-group dev --group bench python -m tests.benchmark

All use the same models and the same kind of engine. They take turns in small batches,
so that a busy machine slows all of them. Each number is a median.
This module is written for asynchronous drivers. main() makes its twin without async
and await for the synchronous ones.
"""

import asyncio
import random
import sqlite3
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from operator import truediv
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import aiosqlite
import asyncpg
import psycopg
from advanced_alchemy import repository as alchemy
from advanced_alchemy.filters import LimitOffset, OrderBy
from sqlalchemy import delete, select
from sqlalchemy_bind_manager import repository as bind_manager

from database.context_async import DbContextAsync
from database.models import UserDb
from repositories.user_repository_async import UserRepositoryAsync
from tests.proxy import proxy_to
from tests.servers import MariaDB, Postgres, Server
from tests.twins import synchronous

PAGE, ROWS, BATCH, ROUNDS = 20, 1000, 5, 100
DRIVERS = ["sqlite", "sqlite+aiosqlite", "postgresql+psycopg", "postgresql+asyncpg"]
DRIVERS += ["mysql+aiomysql"]
SERVERS: list[type[Server]] = [Postgres, MariaDB]
CALLS = ["create", "get", "page", "update", "delete", "read_update"]
ASYNC = __name__ != "twin"


async def read_then_update(users: Any, changed: UserDb) -> None:
    user = await users.get(changed.id)
    user.name = changed.name
    await users.update(user)


class BareUsers:
    def __init__(self, session: Any) -> None:
        self.session = session

    async def create(self, user: UserDb) -> None:
        self.session.add(user)

    async def get(self, id: int) -> Any:
        return await self.session.get(UserDb, id)

    async def page(self, id: int) -> None:
        query = select(UserDb).where(UserDb.id > id).order_by(UserDb.id).limit(PAGE)
        (await self.session.scalars(query)).all()

    async def delete(self, id: int) -> None:
        await self.session.execute(delete(UserDb).where(UserDb.id == id))

    update, read_update = create, read_then_update


class TemplateUsers(UserRepositoryAsync):
    get = UserRepositoryAsync.get_by_id

    async def page(self, id: int) -> None:
        await self.get_page(after_id=id, limit=PAGE)

    async def read_update(self, changed: UserDb) -> None:
        db: Any = self.db
        async with db.transaction() as session:
            await read_then_update(type(self)(session), changed)


base: Any = getattr(alchemy, f"SQLAlchemy{'Async' if ASYNC else 'Sync'}Repository")


class AlchemyUsers(base):  # type: ignore[misc]
    model_type = UserDb
    create, read_update = base.add, read_then_update

    async def page(self, id: int) -> None:
        await self.get_many(UserDb.id > id, LimitOffset(PAGE, 0), OrderBy("id"))


base = getattr(bind_manager, f"SQLAlchemy{'Async' if ASYNC else ''}Repository")


class BindManagerUsers(base):  # type: ignore[misc]
    _model = UserDb
    create, update, read_update = base.save, base.save, read_then_update

    async def page(self, id: int) -> None:
        after = bind_manager.CursorReference(column="id", value=id)
        await self.cursor_paginated_find(PAGE, after)

    async def delete(self, id: int) -> None:
        await super().delete(await self.get(id))


class Session:
    """Makes each call in a session of its own."""

    def __init__(self, url: str, users: Any, **options: Any) -> None:
        self.db, self.users = DbContextAsync(url, **options), users

    async def call(self, name: str, value: Any) -> None:
        async with self.db.sessionmaker.begin() as session:
            await getattr(self.users(session=session), name)(value)

    async def close(self) -> None:
        await self.db.dispose()


class Template(Session):
    async def call(self, name: str, value: Any) -> None:
        await getattr(self.users(self.db), name)(value)


SQL = {
    "create": "INSERT INTO users (name, email, created_at, version_id) "
    "VALUES ($1, $2, CURRENT_TIMESTAMP, 1) RETURNING id",
    "get": "SELECT * FROM users WHERE id = $1",
    "page": f"SELECT * FROM users WHERE id > $1 ORDER BY id LIMIT {PAGE}",
    "update": "UPDATE users SET name = $1, version_id = version_id + 1 "
    "WHERE id = $2 AND version_id = $3 RETURNING id",
    "delete": "DELETE FROM users WHERE id = $1 RETURNING id",
}


class DriverAlone(Session):
    """Without SQLAlchemy. A statement outside of BEGIN and COMMIT commits itself."""

    connection: Any = None

    async def connect(self) -> Any:
        url = self.db.engine.url
        if not url.host:
            connect: Any = aiosqlite.connect if ASYNC else sqlite3.connect
            return await connect(url.database, autocommit=True)
        address = str(url.set(drivername="postgresql"))
        if ASYNC:
            return await asyncpg.connect(address)
        numbered = psycopg.RawCursor  # takes the parameters $1, $2
        return psycopg.connect(address, autocommit=True, cursor_factory=numbered)

    async def execute(self, sql: str, *values: Any) -> None:
        sql = sql if self.db.engine.url.host else sql.replace("$", "?")
        if not ASYNC:
            self.connection.execute(sql, values).fetchall()
        elif self.db.engine.url.host:
            await self.connection.fetch(sql, *values)
        else:
            await self.connection.execute_fetchall(sql, values)

    async def call(self, name: str, value: Any) -> None:
        self.connection = self.connection or await self.connect()
        if name == "create":
            await self.execute(SQL[name], value.name, value.email)
        elif name == "update":
            await self.execute(SQL[name], value.name, value.id, value.version_id)
        elif name == "read_update":
            await self.connection.execute("BEGIN")
            await self.call("get", value.id)
            await self.call("update", value)
            await self.connection.execute("COMMIT")
        else:
            await self.execute(SQL[name], value)

    async def close(self) -> None:
        await self.connection.close()


LOCK = {"begin_immediate": True}  # the template's transaction() sets it, too
PEERS: dict[str, Callable[[str], Session]] = {
    "bare session": lambda url: Session(url, BareUsers),
    "advanced-alchemy": lambda url: Session(url, AlchemyUsers),
    "sqlalchemy-bind-manager": lambda url: Session(url, BindManagerUsers),
    "this template": lambda url: Template(url, TemplateUsers),
    "bare session, SQLite's write lock": lambda url: Session(
        url, BareUsers, execution_options=LOCK
    ),
    "the driver alone": lambda url: DriverAlone(url, None),
}


async def arguments(users: Any, call: str, count: int) -> list[Any]:
    found = [UserDb(name="A", email=f"{random.random()}@x") for _ in range(count)]
    if call == "delete":
        await users.create_many(found)
    elif call != "create":
        start = random.randrange(ROWS - count)
        found = await users.get_page(after_id=start, limit=count)
    for user in found if "update" in call else []:
        user.name = f"A {random.random()}"
    return [user.id for user in found] if call in ("get", "page", "delete") else found


async def repeat(peer: Session, call: str, values: list[Any]) -> None:
    for value in values:
        await peer.call(call, value)


async def measure(
    url: str, names: list[str], columns: list[str], rounds: int, clock: Any
) -> Any:
    """Return by how much the clock advances in a call, in each round."""
    peers = {name: PEERS[name](url) for name in names}
    costs: Any = {name: {column: [] for column in columns} for name in names}
    users = UserRepositoryAsync(peers["this template"].db)
    await peers["this template"].db.create_all()
    await users.create_many(await arguments(users, "create", ROWS))
    for column in columns * rounds:
        call, tasks = (column, 1) if column in CALLS else (CALLS[-1], int(column))
        count = BATCH if column in CALLS else 80
        for name in random.sample(names, len(names)):
            values = await arguments(users, call, count)
            start = clock()
            work = [repeat(peers[name], call, values[n::tasks]) for n in range(tasks)]
            if ASYNC:
                await asyncio.gather(*work)
            costs[name][column].append((clock() - start) / count)
    for peer in peers.values():
        await peer.close()
    return costs


def show(title: str, results: dict[str, Any], value: Callable[..., Any]) -> None:
    """Print a table. Each cell has one value for each driver."""
    print(f"\n{title}\n{' / '.join(results)}\n")
    bare, *_ = peers = [*next(iter(results.values()))]
    columns = [*next(iter(results.values()))[bare]]
    print(f"| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for peer in peers:
        row = f"| {peer} | "
        for c in columns:
            values = [value(one[bare][c], one[peer][c]) for one in results.values()]
            row += " / ".join(f"{value:.3g}" for value in values) + " | "
        print(row)


def main() -> None:
    twin: dict[str, Any] = {"__name__": "twin"}
    exec(synchronous(Path(__file__).read_text()), twin)
    speeds, trips, rates, clock = {}, {}, {}, time.perf_counter
    with TemporaryDirectory(prefix="benchmark-") as folder, ExitStack() as stack:
        Path(folder).chmod(0o777)  # the servers may run as other users
        servers = {kind.scheme: kind(Path(folder) / kind.scheme) for kind in SERVERS}
        for server in servers.values():
            stack.callback(server.kill)
            server.start()
        for driver in DRIVERS:
            url, names = f"{driver}:///{folder}/{driver}.db", [*PEERS]
            is_sync = driver in ("sqlite", "postgresql+psycopg")
            run: Any = twin["measure"] if is_sync else run_in_event_loop
            if database := servers.get(driver.partition("+")[0]):
                url = database.url(driver, database.create_database())
                with proxy_to(url) as proxy:
                    count = partial(getattr, proxy, "round_trips")
                    trips[driver] = run(proxy.url, names[:4], CALLS, 9, count)
            if not driver.startswith("mysql"):
                speeds[driver] = run(url, names, CALLS, ROUNDS, clock)
                if not is_sync:
                    tasks = ["1", "4", "16"]
                    rates[driver] = run(url, names[3:5], tasks, ROUNDS // 9, clock)
    speed = "Speed relative to the bare session: 1 is equal, higher is faster"
    show(speed, speeds, lambda bare, mine: median(map(truediv, bare, mine)))
    show("Round trips", trips, lambda _, mine: median(mine))
    rate = '"Read, then update" a second, with 1, 4 and 16 tasks'
    show(rate, rates, lambda _, mine: 1 / median(mine))


def run_in_event_loop(*args: Any) -> Any:
    return asyncio.run(measure(*args))


if __name__ == "__main__":
    main()
