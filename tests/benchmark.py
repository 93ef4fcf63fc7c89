"""Measure how fast the template is beside a bare session and other libraries.

    uv run --no-group dev --group bench python -m tests.benchmark

All use the same models and the same engine. They take turns in small batches, so that
a busy machine slows all of them. Each number is a median.
"""

import asyncio
import random
import sqlite3
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import aiosqlite
import asyncpg
import psycopg
from advanced_alchemy import repository as alchemy
from advanced_alchemy.filters import LimitOffset, OrderBy
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy_bind_manager import repository as bind_manager

from database.context_async import DbContextAsync
from database.models import UserDb
from repositories.user_repository_async import UserRepositoryAsync
from tests.proxy import proxy_to
from tests.servers import MariaDB, Postgres, running
from tests.twins import synchronous

PAGE, ROWS, BATCH, ROUNDS = 20, 1000, 5, 100
DRIVERS = ["sqlite", "sqlite+aiosqlite", "postgresql+psycopg", "postgresql+asyncpg"]
CALLS = ["create", "get", "page", "update", "delete", "read_update"]
TASKS = ["read_update 1", "read_update 4", "read_update 16"]
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
            await read_then_update(TemplateUsers(session), changed)

    async def call(self, name: str, value: Any) -> None:
        await getattr(self, name)(value)


base: Any = getattr(alchemy, f"SQLAlchemy{'Async' if ASYNC else 'Sync'}Repository")


class AlchemyUsers(base):  # type: ignore[misc]  # its type is Any
    model_type = UserDb
    create, read_update = base.add, read_then_update

    async def page(self, id: int) -> None:
        await self.get_many(UserDb.id > id, LimitOffset(PAGE, 0), OrderBy("id"))


base = getattr(bind_manager, f"SQLAlchemy{'Async' if ASYNC else ''}Repository")


class BindManagerUsers(base):  # type: ignore[misc]  # its type is Any
    _model = UserDb
    create, update, read_update = base.save, base.save, read_then_update

    async def page(self, id: int) -> None:
        after = bind_manager.CursorReference(column="id", value=id)
        await self.cursor_paginated_find(PAGE, after)

    async def delete(self, id: int) -> None:
        await super().delete(await self.get(id))


class Session:
    """Makes each call in a session of its own."""

    def __init__(self, users: Any, db: DbContextAsync, **options: Any) -> None:
        engine = db.engine.execution_options(**options)
        self.sessionmaker = async_sessionmaker(engine, expire_on_commit=False)
        self.users = users

    async def call(self, name: str, value: Any) -> None:
        async with self.sessionmaker.begin() as session:
            await getattr(self.users(session=session), name)(value)


SQL = {
    "create": "INSERT INTO users (name, email, created_at) "
    "VALUES ('A', $1, CURRENT_TIMESTAMP) RETURNING id",
    "get": "SELECT * FROM users WHERE id = $1",
    "page": f"SELECT * FROM users WHERE id > $1 ORDER BY id LIMIT {PAGE}",
    "update": "UPDATE users SET version_id = version_id + 1 WHERE id = $1 RETURNING id",
    "delete": "DELETE FROM users WHERE id = $1 RETURNING id",
}


class DriverAlone:
    """Without SQLAlchemy. A statement outside of BEGIN and COMMIT commits itself."""

    connection: Any = None

    def __init__(self, db: DbContextAsync) -> None:
        self.url = db.engine.url

    async def connect(self) -> Any:
        if not self.url.host:
            sqlite: Any = aiosqlite if ASYNC else sqlite3
            return await sqlite.connect(self.url.database, autocommit=True)
        url = str(self.url.set(drivername="postgresql"))
        if ASYNC:
            return await asyncpg.connect(url)
        return psycopg.connect(url, autocommit=True, cursor_factory=psycopg.RawCursor)

    async def call(self, name: str, value: Any) -> None:
        self.connection = self.connection or await self.connect()
        if name == "read_update":
            await self.connection.execute("BEGIN")
            await self.call("get", value.id)
            await self.call("update", value)
            await self.connection.execute("COMMIT")
            return
        sql = SQL[name] if self.url.host else SQL[name].replace("$1", "?")
        value = getattr(value, "id", value) or value.email  # a new user has no id
        if not ASYNC:
            self.connection.execute(sql, [value]).fetchall()
        elif self.url.host:
            await self.connection.fetch(sql, value)
        else:
            await self.connection.execute_fetchall(sql, [value])


PEERS: dict[str, Any] = {
    "bare session": partial(Session, BareUsers),
    "advanced-alchemy": partial(Session, AlchemyUsers),
    "sqlalchemy-bind-manager": partial(Session, BindManagerUsers),
    "this template": TemplateUsers,
    "bare session, write lock": partial(Session, BareUsers, begin_immediate=True),
    "the driver alone": DriverAlone,
}


async def arguments(users: Any, call: str, count: int) -> list[Any]:
    if call == "create":
        return [UserDb(name="A", email=f"{random.random()}@x") for _ in range(count)]
    found = await users.get_page(after_id=random.randrange(ROWS - count), limit=count)
    for user in found:
        user.name = f"A {random.random()}"
    return [user if "update" in call else user.id for user in found]


async def repeat(peer: Any, call: str, values: list[Any]) -> None:
    for value in values:
        await peer.call(call, value)


async def measure(url: str, names: list[str], columns: list[str], clock: Any) -> Any:
    """Return by how much the clock advances in a call, in each round."""
    costs: Any = {name: {column: [] for column in columns} for name in names}
    async with DbContextAsync(url) as db:
        peers = {name: PEERS[name](db) for name in names}
        users = UserRepositoryAsync(db)
        await db.create_all()
        await users.create_many(await arguments(users, "create", ROWS))
        for column in columns:
            call, _, number = column.partition(" ")
            tasks = int(number or 1)
            for name, peer in random.sample([*peers.items()], len(peers)):
                values = await arguments(users, call, BATCH * tasks)
                start = clock()
                work = [repeat(peer, call, values[n::tasks]) for n in range(tasks)]
                if ASYNC:
                    await asyncio.gather(*work)
                costs[name][column].append((clock() - start) / len(values))
    if driver := peers.get("the driver alone"):
        await driver.connection.close()
    return costs


def run(*args: Any) -> Any:
    return asyncio.run(measure(*args)) if ASYNC else measure(*args)


def show(title: str, results: dict[str, Any], value: Any) -> None:
    """Print a table. Each cell has the median of each driver."""
    tables = list(results.values())
    bare, *_ = tables[0]
    print(f"\n{title}\n{' / '.join(results)}\n")
    print("", *tables[0][bare], sep=" | ")
    for peer, columns in tables[0].items():
        cells = [peer]
        for c in columns:
            medians = [median(map(value, t[bare][c], t[peer][c])) for t in tables]
            cells.append(" / ".join(f"{number:.2f}" for number in medians))
        print(*cells, sep=" | ")


def main() -> None:
    twin: dict[str, Any] = {"__name__": "twin"}
    exec(synchronous(Path(__file__).read_text()), twin)
    speeds, trips, rates, names = {}, {}, {}, list(PEERS)
    with TemporaryDirectory() as folder, ExitStack() as stack:
        for driver in [*DRIVERS, "mysql+aiomysql"]:
            runner = twin["run"] if driver in ("sqlite", "postgresql+psycopg") else run
            url = f"{driver}:///{folder}/{driver}.db"
            if "sqlite" not in driver:
                kind = MariaDB if "mysql" in driver else Postgres
                server = stack.enter_context(running(kind))
                url = server.url(driver, server.create_database())
                proxy = stack.enter_context(proxy_to(url))
                count = partial(getattr, proxy, "round_trips")
                trips[driver] = runner(proxy.url, names[:4], CALLS * 9, count)
            if driver in DRIVERS:
                speeds[driver] = runner(url, names, CALLS * ROUNDS, perf_counter)
                if runner is run:
                    rates[driver] = run(url, names[3:5], TASKS * 25, perf_counter)
    show("Speed: the bare session is 1", speeds, lambda bare, mine: bare / mine)
    show("Round trips", trips, lambda _, mine: mine)
    show("Calls a second, by so many tasks", rates, lambda _, mine: 1 / mine)


if __name__ == "__main__":
    main()
