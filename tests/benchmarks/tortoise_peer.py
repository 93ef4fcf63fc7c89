"""Tortoise ORM."""

from typing import Any

from sqlalchemy import URL
from tortoise import Model, Tortoise, fields

from tests.benchmarks import POOL_SIZE, Peer, values


class User(Model):
    id = fields.BigIntField(primary_key=True)
    name = fields.CharField(max_length=100)
    email = fields.CharField(max_length=254, unique=True)
    version = fields.IntField(default=1)

    class Meta:
        table = "users"


SCHEMES = {"postgresql+asyncpg": "asyncpg", "postgresql+psycopg": "psycopg", "mysql+aiomysql": "mysql"}


class TortoisePeer(Peer):
    name, is_async = "Tortoise", True
    drivers = ("sqlite+aiosqlite", *SCHEMES)
    why_not = "has no sync code"

    async def open(self, url: URL) -> None:
        if url.drivername == "sqlite+aiosqlite":
            address = f"sqlite://{url.database}"
        else:
            sizes = "minsize=1&maxsize" if url.drivername == "mysql+aiomysql" else "min_size=1&max_size"
            address = f"{SCHEMES[url.drivername]}://{url.username}:{url.password or ''}@{url.host}:{url.port}"
            address += f"/{url.database}?{sizes}={POOL_SIZE}"
        # a connection name for each driver: Tortoise keeps the SQL that it has written for a name
        app = {"models": [__name__], "default_connection": url.drivername}
        await Tortoise.init(config={"connections": {url.drivername: address}, "apps": {"benchmarks": app}})

    async def close(self) -> None:
        await Tortoise.close_connections()

    async def create(self, n: int) -> Any:
        return await User.create(**values(n))

    async def get(self, id: int) -> Any:
        return await User.get_or_none(id=id)

    async def page(self, after: int) -> Any:
        return await User.filter(id__gt=after).order_by("id").limit(100)

    async def update(self, user: Any, name: str) -> None:
        user.name = name
        await user.save(update_fields=["name"])

    async def delete(self, id: int) -> None:
        await User.filter(id=id).delete()

    async def create_many(self, numbers: range) -> None:
        await User.bulk_create([User(**values(n)) for n in numbers])
