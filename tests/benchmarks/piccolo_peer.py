"""Piccolo."""

from typing import Any

from piccolo.columns import BigInt, BigSerial, Varchar
from piccolo.engine.postgres import PostgresEngine
from piccolo.engine.sqlite import SQLiteEngine
from piccolo.table import Table
from sqlalchemy import URL

from tests.benchmarks import POOL_SIZE, Peer, values
from tests.benchmarks.raw import server


class User(Table, tablename="users"):
    id = BigSerial(primary_key=True)
    name = Varchar(length=100)
    email = Varchar(length=254, unique=True)
    version = BigInt(default=1)


class Piccolo(Peer):
    name, is_async = "Piccolo", True
    drivers = ("sqlite+aiosqlite", "postgresql+asyncpg")
    why_not = "has asyncpg and aiosqlite only; its sync calls start an event loop each"

    async def open(self, url: URL) -> None:
        if url.drivername == "sqlite+aiosqlite":
            self.engine: Any = SQLiteEngine(path=str(url.database), timeout=30)
        else:
            self.engine = PostgresEngine(config={"database": url.database, **server(url)})
            await self.engine.start_connection_pool(min_size=1, max_size=POOL_SIZE)
        User._meta.db = self.engine

    async def close(self) -> None:
        if isinstance(self.engine, PostgresEngine):
            await self.engine.close_connection_pool()

    async def create(self, n: int) -> Any:
        user = User(**values(n))
        await user.save()
        return user

    async def get(self, id: int) -> Any:
        return await User.objects().get(User.id == id)

    async def page(self, after: int) -> Any:
        return await User.objects().where(User.id > after).order_by(User.id).limit(100)

    async def update(self, user: Any, name: str) -> None:
        user.name = name
        await user.save([User.name])

    async def delete(self, id: int) -> None:
        await User.delete().where(User.id == id)

    async def create_many(self, numbers: range) -> None:
        await User.insert(*[User(**values(n)) for n in numbers])
