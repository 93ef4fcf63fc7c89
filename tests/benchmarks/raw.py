"""The drivers without anything on top: the limit. Rows are tuples, a statement commits itself, nothing is checked."""

import queue
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiomysql
import aiosqlite
import asyncpg
import psycopg
import pymysql
from sqlalchemy import URL

from tests.benchmarks import POOL_SIZE, Peer, values

INSERT = "INSERT INTO users (name, email, version) VALUES (%s, %s, 1)"
GET = "SELECT id, name, email, version FROM users WHERE id = %s"
PAGE = "SELECT id, name, email, version FROM users WHERE id > %s ORDER BY id LIMIT 100"
UPDATE = "UPDATE users SET name = %s, version = version + 1 WHERE id = %s AND version = %s"
DELETE = "DELETE FROM users WHERE id = %s"


def row(n: int) -> tuple[str, ...]:
    return tuple(values(n).values())


def server(url: URL) -> dict[str, Any]:
    found = {"host": url.host, "port": url.port, "user": url.username, "password": url.password}
    return {name: value for name, value in found.items() if value}


class Raw(Peer):
    name, is_async = "the driver alone", False
    returning = " RETURNING id"

    def connect(self, url: URL) -> Any:
        if url.drivername == "sqlite":
            connection = sqlite3.connect(str(url.database), isolation_level=None, check_same_thread=False, timeout=30)
            connection.execute("PRAGMA foreign_keys = ON")
            return connection
        if url.drivername == "postgresql+psycopg":
            return psycopg.connect(dbname=url.database, autocommit=True, **server(url))
        return pymysql.connect(database=url.database, autocommit=True, **server(url))

    async def open(self, url: URL) -> None:
        self.is_sqlite = url.drivername == "sqlite"
        self.pool: queue.LifoQueue[Any] = queue.LifoQueue()
        for _ in range(POOL_SIZE):
            self.pool.put(self.connect(url))

    async def close(self) -> None:
        while not self.pool.empty():
            self.pool.get().close()

    @contextmanager
    def cursor(self) -> Iterator[Any]:
        connection = self.pool.get()
        cursor = connection.cursor()
        try:
            yield cursor
        finally:
            cursor.close()
            self.pool.put(connection)

    def sql(self, text: str) -> str:
        return text.replace("%s", "?") if self.is_sqlite else text

    def create(self, n: int) -> Any:
        with self.cursor() as cursor:
            cursor.execute(self.sql(INSERT) + self.returning, row(n))
            return cursor.fetchone()

    def get(self, id: int) -> Any:
        with self.cursor() as cursor:
            cursor.execute(self.sql(GET), (id,))
            return cursor.fetchone()

    def page(self, after: int) -> Any:
        with self.cursor() as cursor:
            cursor.execute(self.sql(PAGE), (after,))
            return cursor.fetchall()

    def update(self, user: Any, name: str) -> None:
        with self.cursor() as cursor:
            cursor.execute(self.sql(UPDATE), (name, user[0], user[3]))

    def delete(self, id: int) -> None:
        with self.cursor() as cursor:
            cursor.execute(self.sql(DELETE), (id,))

    def create_many(self, numbers: range) -> None:
        with self.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.executemany(self.sql(INSERT), [row(n) for n in numbers])
            cursor.execute("COMMIT")


class AsyncPool(Peer):
    name, is_async = Raw.name, True

    async def connect(self, url: URL) -> Any:
        raise NotImplementedError

    async def open(self, url: URL) -> None:
        import asyncio

        self.pool: asyncio.LifoQueue[Any] = asyncio.LifoQueue()
        for _ in range(POOL_SIZE):
            self.pool.put_nowait(await self.connect(url))

    async def close(self) -> None:
        while not self.pool.empty():
            closed = self.pool.get_nowait().close()
            if closed:  # aiomysql's close is no coroutine
                await closed


class RawAsync(AsyncPool):
    """aiosqlite, psycopg and aiomysql, which have cursors."""

    drivers = ("sqlite+aiosqlite", "postgresql+psycopg", "mysql+aiomysql")

    async def connect(self, url: URL) -> Any:
        self.is_sqlite = url.drivername == "sqlite+aiosqlite"
        if self.is_sqlite:
            connection = await aiosqlite.connect(str(url.database), isolation_level=None, timeout=30)
            await connection.execute("PRAGMA foreign_keys = ON")
            return connection
        if url.drivername == "postgresql+psycopg":
            return await psycopg.AsyncConnection.connect(dbname=url.database, autocommit=True, **server(url))
        return await aiomysql.connect(db=url.database, autocommit=True, **server(url))

    @asynccontextmanager
    async def cursor(self) -> AsyncIterator[Any]:
        connection = await self.pool.get()
        cursor = connection.cursor()  # of aiosqlite and aiomysql, it is opened by the first await
        try:
            async with cursor as opened:
                yield opened
        finally:
            self.pool.put_nowait(connection)

    def sql(self, text: str) -> str:
        return text.replace("%s", "?") if self.is_sqlite else text

    async def create(self, n: int) -> Any:
        async with self.cursor() as cursor:
            await cursor.execute(self.sql(INSERT) + " RETURNING id", row(n))
            return await cursor.fetchone()

    async def get(self, id: int) -> Any:
        async with self.cursor() as cursor:
            await cursor.execute(self.sql(GET), (id,))
            return await cursor.fetchone()

    async def page(self, after: int) -> Any:
        async with self.cursor() as cursor:
            await cursor.execute(self.sql(PAGE), (after,))
            return await cursor.fetchall()

    async def update(self, user: Any, name: str) -> None:
        async with self.cursor() as cursor:
            await cursor.execute(self.sql(UPDATE), (name, user[0], user[3]))

    async def delete(self, id: int) -> None:
        async with self.cursor() as cursor:
            await cursor.execute(self.sql(DELETE), (id,))

    async def create_many(self, numbers: range) -> None:
        async with self.cursor() as cursor:
            await cursor.execute("BEGIN")
            await cursor.executemany(self.sql(INSERT), [row(n) for n in numbers])
            await cursor.execute("COMMIT")


class Asyncpg(AsyncPool):
    drivers = ("postgresql+asyncpg",)

    @staticmethod
    def sql(text: str) -> str:
        for n in (1, 2, 3):
            text = text.replace("%s", f"${n}", 1)
        return text

    async def connect(self, url: URL) -> Any:
        return await asyncpg.connect(database=url.database, **server(url))

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        connection = await self.pool.get()
        try:
            yield connection
        finally:
            self.pool.put_nowait(connection)

    async def create(self, n: int) -> Any:
        async with self.connection() as connection:
            return await connection.fetchval(self.sql(INSERT) + " RETURNING id", *row(n))

    async def get(self, id: int) -> Any:
        async with self.connection() as connection:
            return await connection.fetchrow(self.sql(GET), id)

    async def page(self, after: int) -> Any:
        async with self.connection() as connection:
            return await connection.fetch(self.sql(PAGE), after)

    async def update(self, user: Any, name: str) -> None:
        async with self.connection() as connection:
            await connection.execute(self.sql(UPDATE), name, user[0], user[3])

    async def delete(self, id: int) -> None:
        async with self.connection() as connection:
            await connection.execute(self.sql(DELETE), id)

    async def create_many(self, numbers: range) -> None:
        async with self.connection() as connection:
            await connection.executemany(self.sql(INSERT), [row(n) for n in numbers])


DRIVERS: tuple[type[Peer], ...] = (Raw, RawAsync, Asyncpg)
