"""peewee, and its asyncio extension."""

from typing import Any

from peewee import BigAutoField, CharField, IntegerField
from playhouse.pool import PooledMySQLDatabase, PooledPostgresqlDatabase, PooledSqliteDatabase
from playhouse.pwasyncio import AsyncModel, AsyncMySQLDatabase, AsyncPostgresqlDatabase, AsyncSqliteDatabase
from sqlalchemy import URL

from tests.benchmarks import POOL_SIZE, Peer, values
from tests.benchmarks.raw import server


class User(AsyncModel):
    id = BigAutoField()
    name = CharField(max_length=100)
    email = CharField(max_length=254, unique=True)
    version = IntegerField(default=1)

    class Meta:
        table_name = "users"


PRAGMAS = {"foreign_keys": 1}
BATCH = 5_000  # a SQLite statement takes 32,766 values, a PostgreSQL one 65,535


class Peewee(Peer):
    name, is_async = "peewee", False

    async def open(self, url: URL) -> None:
        if url.drivername == "sqlite":
            self.db: Any = PooledSqliteDatabase(
                url.database, max_connections=POOL_SIZE, timeout=30, pragmas=PRAGMAS, check_same_thread=False
            )
        elif url.drivername == "postgresql+psycopg":
            self.db = PooledPostgresqlDatabase(
                url.database, max_connections=POOL_SIZE, timeout=30, prefer_psycopg3=True, **server(url)
            )
        else:
            self.db = PooledMySQLDatabase(url.database, max_connections=POOL_SIZE, timeout=30, **server(url))
        self.db.bind([User])

    async def close(self) -> None:
        self.db.close_all()

    def create(self, n: int) -> Any:
        with self.db.connection_context():
            return User.create(**values(n))

    def get(self, id: int) -> Any:
        with self.db.connection_context():
            return User.get_or_none(User.id == id)

    def page(self, after: int) -> Any:
        with self.db.connection_context():
            return list(User.select().where(User.id > after).order_by(User.id).limit(100))

    def update(self, user: Any, name: str) -> None:
        user.name = name
        with self.db.connection_context():
            user.save(only=[User.name])

    def delete(self, id: int) -> None:
        with self.db.connection_context():
            User.delete_by_id(id)

    def create_many(self, numbers: range) -> None:
        with self.db.connection_context(), self.db.atomic():
            User.bulk_create([User(**values(n)) for n in numbers], BATCH)


class PeeweeAsync(Peer):
    name, is_async = Peewee.name, True
    drivers = ("sqlite+aiosqlite", "postgresql+asyncpg", "mysql+aiomysql")
    why_not = "has no async psycopg"

    async def open(self, url: URL) -> None:
        if url.drivername == "sqlite+aiosqlite":
            self.db: Any = AsyncSqliteDatabase(
                url.database, pool_size=POOL_SIZE, timeout=30, pragmas={"foreign_keys": 1}
            )
        else:
            kind = AsyncPostgresqlDatabase if url.drivername == "postgresql+asyncpg" else AsyncMySQLDatabase
            self.db = kind(url.database, pool_size=POOL_SIZE, **server(url))
        self.db.bind([User])

    async def close(self) -> None:
        await self.db.close_pool()

    async def create(self, n: int) -> Any:
        async with self.db:
            return await User.acreate(**values(n))

    async def get(self, id: int) -> Any:
        async with self.db:
            return await User.aget_or_none(User.id == id)

    async def page(self, after: int) -> Any:
        async with self.db:
            return await self.db.list(User.select().where(User.id > after).order_by(User.id).limit(100))

    async def update(self, user: Any, name: str) -> None:
        user.name = name
        async with self.db:
            await user.asave(only=[User.name])

    async def delete(self, id: int) -> None:
        async with self.db:
            await User.adelete_by_id(id)

    async def create_many(self, numbers: range) -> None:
        async with self.db, self.db.atomic():
            await User.abulk_create([User(**values(n)) for n in numbers], BATCH)
