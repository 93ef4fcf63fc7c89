"""How long a call takes beside a bare session, the repositories of others, and the driver alone.

All use the same table, models and kind of engine, in turns of small batches; a number is the median of the rounds'.
"""

import asyncio
import itertools
import random
import re
import sqlite3
import time
from argparse import ArgumentParser, Namespace
from contextlib import ExitStack
from inspect import getsource
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
from sqlalchemy import delete, make_url, select
from sqlalchemy_bind_manager import SQLAlchemyBindManager, SQLAlchemyConfig
from sqlalchemy_bind_manager import repository as bind_manager

from database.context import DbContext
from database.context_async import DbContextAsync
from database.models import UserDb
from repositories.user_repository import UserRepository
from repositories.user_repository_async import UserRepositoryAsync
from tests.servers import Postgres

CALLS = ("create", "get", "page", "update", "delete", "change")
BATCH, PAGE, ROWS = 10, 20, 1000

# where the stacks differ by more than async and await
SYNC = Namespace(context=DbContext, users=UserRepository, alchemy=alchemy.SQLAlchemySyncRepository)
SYNC.managed, SYNC.unit_of_work = bind_manager.SQLAlchemyRepository, bind_manager.UnitOfWork
ASYNC = Namespace(context=DbContextAsync, users=UserRepositoryAsync, alchemy=alchemy.SQLAlchemyAsyncRepository)
ASYNC.managed, ASYNC.unit_of_work = bind_manager.SQLAlchemyAsyncRepository, bind_manager.AsyncUnitOfWork


class Bare:
    def __init__(self, stack: Any, url: str) -> None:
        self.db = stack.context(url)
        self.begin = self.db.sessionmaker.begin

    async def create(self, user: UserDb) -> Any:
        async with self.begin() as session:
            session.add(user)

    async def get(self, id: int) -> Any:
        async with self.begin() as session:
            return await session.get(UserDb, id)

    async def page(self, id: int) -> Any:
        async with self.begin() as session:
            return (await session.scalars(select(UserDb).where(UserDb.id > id).order_by(UserDb.id).limit(PAGE))).all()

    update = create

    async def delete(self, id: int) -> Any:
        async with self.begin() as session:
            await session.execute(delete(UserDb).where(UserDb.id == id))

    async def change(self, changed: UserDb) -> Any:
        async with self.begin() as session:
            (await session.get(UserDb, changed.id)).name = changed.name


class Template:
    def __init__(self, stack: Any, url: str) -> None:
        self.db, self.users = stack.context(url), stack.users
        users = self.users(self.db)
        self.create, self.get, self.update, self.delete = users.create, users.get_by_id, users.update, users.delete
        self.page = lambda key: users.get_page(after_id=key, limit=PAGE)

    async def change(self, changed: UserDb) -> Any:
        async with self.db.transaction() as tx:
            users = self.users(tx)
            user = await users.get_by_id(changed.id)
            user.name = changed.name
            await users.update(user)


class AdvancedAlchemy:
    def __init__(self, stack: Any, url: str) -> None:
        self.db = stack.context(url)
        self.users = type("Users", (stack.alchemy,), {"model_type": UserDb})
        self.create = lambda user: self.call("add", user)
        self.get = lambda key: self.call("get", key)
        self.page = lambda key: self.call("get_many", UserDb.id > key, LimitOffset(PAGE, 0), OrderBy("id"))
        self.update = lambda user: self.call("update", user)
        self.delete = lambda key: self.call("delete", key)

    async def call(self, method: str, *values: Any) -> Any:
        async with self.db.sessionmaker() as session:
            return await getattr(self.users(session=session, auto_commit=True), method)(*values)

    async def change(self, changed: UserDb) -> Any:
        async with self.db.sessionmaker() as session:
            users = self.users(session=session, auto_commit=True)
            user = await users.get(changed.id)
            user.name = changed.name
            await users.update(user)


class BindManager:
    def __init__(self, stack: Any, url: str) -> None:
        self.db = stack.context(url)
        bind: Any = SQLAlchemyBindManager(SQLAlchemyConfig(engine_url=url, async_engine=stack is ASYNC)).get_bind()
        bind.session_class.configure(bind=self.db.engine)
        self.users, self.work = stack.managed(bind, model_class=UserDb), stack.unit_of_work(bind)
        self.work.register_repository("users", stack.managed, UserDb)
        self.create, self.get, self.update = self.users.save, self.users.get, self.users.save

    async def page(self, id: int) -> Any:
        return (await self.users.cursor_paginated_find(PAGE, bind_manager.CursorReference(column="id", value=id))).items

    async def delete(self, id: int) -> Any:
        await self.users.delete(await self.users.get(id))

    async def change(self, changed: UserDb) -> Any:
        async with self.work.transaction():
            (await self.work.repository("users").get(changed.id)).name = changed.name


CONNECT: dict[str, Any] = {  # so that each statement commits itself
    "sqlite": lambda url: sqlite3.connect(url.database, autocommit=True),
    "sqlite+aiosqlite": lambda url: aiosqlite.connect(url.database, autocommit=True),
    "postgresql+psycopg": lambda url: psycopg.connect(str(url), autocommit=True, cursor_factory=psycopg.RawCursor),
    "postgresql+asyncpg": lambda url: asyncpg.connect(str(url)),
}
SELECT = "SELECT id, name, email, version FROM users WHERE id"
INSERT = "INSERT INTO users (name, email, version) VALUES ($1, $2, 1) RETURNING id"
UPDATE = "UPDATE users SET name = $1, version = version + 1 WHERE id = $2 AND version = $3 RETURNING id"


class Driver:
    db: Any = None

    def __init__(self, stack: Any, url: str) -> None:
        self.url, self.is_async = make_url(url), stack is ASYNC
        self.create = lambda user: self.run(INSERT, user.name, user.email)
        self.get = lambda key: self.run(f"{SELECT} = $1", key)
        self.page = lambda key: self.run(f"{SELECT} > $1 ORDER BY id LIMIT {PAGE}", key)
        self.update = lambda user: self.run(UPDATE, user.name, user.id, user.version)
        self.delete = lambda key: self.run("DELETE FROM users WHERE id = $1 RETURNING id", key)

    async def run(self, sql: str, *values: Any) -> Any:
        if not self.db:
            self.db = await CONNECT[self.url.drivername](self.url.set(drivername=self.url.get_backend_name()))
        if self.url.drivername == "postgresql+asyncpg":
            return await self.db.fetch(sql, *values)
        sql = sql if self.url.port else sql.replace("$", "?")
        return await self.db.execute_fetchall(sql, values) if self.is_async else self.db.execute(sql, values).fetchall()

    async def change(self, changed: UserDb) -> Any:
        await self.db.execute("BEGIN")
        [(*_, version)] = await self.run(f"{SELECT} = $1", changed.id)
        await self.run(UPDATE, changed.name, changed.id, version)
        await self.db.execute("COMMIT")


PEERS = {"bare session": Bare, "this template": Template, "advanced-alchemy": AdvancedAlchemy}
PEERS |= {"sqlalchemy-bind-manager": BindManager, "the driver alone": Driver}


def sync_twin(peer: Any) -> Any:
    """The same class without async and await."""
    names = {**globals()}
    exec(re.sub(r"\b(async|await) ", "", getsource(peer)), names)
    return names[peer.__name__]


def new(count: int) -> list[UserDb]:
    return [UserDb(name="Ada", email=f"{random.random()}@example.com") for _ in range(count)]


def arguments(call: str, users: UserRepository) -> list[Any]:
    """What to call a peer with, for one batch."""
    if call in ("create", "delete"):
        return new(BATCH) if call == "create" else [user.id for user in users.create_many(new(BATCH))]
    found = users.get_page(after_id=random.randrange(ROWS - BATCH - PAGE), limit=BATCH)
    for user in found:
        user.name = f"Ada {random.random()}"
    return found if call in ("update", "change") else [user.id for user in found]


async def measure(stack: Any, url: str, users: UserRepository, rounds: int) -> dict[tuple[str, str], float]:
    """Return how many times as long as the bare session a peer takes for a call."""
    peers: Any = {name: (peer if stack is ASYNC else sync_twin(peer))(stack, url) for name, peer in PEERS.items()}
    times: dict[tuple[str, str], list[float]] = {(name, call): [] for name in PEERS for call in CALLS}
    for _, call in itertools.product(range(rounds), CALLS):
        for name in random.sample([*PEERS], len(PEERS)):
            function, values = getattr(peers[name], call), arguments(call, users)
            start = time.perf_counter()
            for value in values:
                answer = function(value)
                if stack is ASYNC:
                    await answer
            times[name, call].append(time.perf_counter() - start)
    for peer in peers.values():
        closed = (getattr(peer.db, "dispose", None) or peer.db.close)()
        if stack is ASYNC:
            await closed
    return {key: median(map(truediv, mine, times["bare session", key[1]])) for key, mine in times.items()}


def main() -> None:
    parser = ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    rounds, results = parser.parse_args().rounds, []
    with TemporaryDirectory(prefix="benchmark-") as folder, ExitStack() as stack:
        Path(folder).chmod(0o755)  # the server may run as another user
        server = Postgres(Path(folder) / "data")
        stack.callback(server.kill)
        server.start()
        name = server.create_database()
        for url, url_async in (
            (f"sqlite:///{folder}/users.db", f"sqlite+aiosqlite:///{folder}/users.db"),
            (server.url("postgresql+psycopg", name), server.url("postgresql+asyncpg", name)),
        ):
            with DbContext(url) as db:
                db.create_all()
                users = UserRepository(db)
                users.create_many(new(ROWS))
                results.append(asyncio.run(measure(SYNC, url, users, rounds)))
                results.append(asyncio.run(measure(ASYNC, url_async, users, rounds)))
    print("On sqlite3 / aiosqlite / psycopg / asyncpg; below 1.00 is faster than the bare session.\n")
    print(f"| | create | get | page of {PAGE} | update | delete | read, then update |\n|{'---|' * 7}")
    for peer in PEERS:
        cells = [" / ".join(f"{ratios[peer, call]:.2f}" for ratios in results) for call in CALLS]
        print("|", " | ".join([peer, *cells]), "|")


if __name__ == "__main__":
    main()
