"""This template, sessions written by hand, and the repositories that are built on SQLAlchemy."""

from datetime import date
from decimal import Decimal
from typing import Any, Optional

from advanced_alchemy.filters import LimitOffset, OrderBy
from advanced_alchemy.repository import SQLAlchemyAsyncRepository, SQLAlchemySyncRepository
from sqlalchemy import URL, Engine, create_engine, delete, event, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy_bind_manager import SQLAlchemyBindManager, SQLAlchemyConfig
from sqlalchemy_bind_manager import repository as bind_manager
from sqlmodel import Field, Relationship, SQLModel, col
from sqlmodel import Session as SQLModelSession
from sqlmodel import select as sqlmodel_select
from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelAsyncSession

from database.context import DbContext
from database.context_async import DbContextAsync
from database.models import UserDb
from database.shared import set_up_sqlite
from repositories.user_repository import UserRepository
from repositories.user_repository_async import UserRepositoryAsync
from tests.benchmarks import POOL_SIZE, Peer, values

POOL: dict[str, Any] = {"pool_size": POOL_SIZE, "max_overflow": 0}


def engine_options(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return POOL | {"connect_args": {"autocommit": False}}
    return POOL | {"pool_pre_ping": True}


def set_up(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", set_up_sqlite)


def page(after: int) -> Any:
    return select(UserDb).where(UserDb.id > after).order_by(UserDb.id).limit(100)


class Ours(Peer):
    name, is_async = "this template", False
    context: Any = DbContext
    repository: Any = UserRepository

    async def open(self, url: URL) -> None:
        self.db = self.context(url, **POOL)
        users = self.repository(self.db)
        self.get, self.update, self.delete = users.get_by_id, self.rename, users.delete
        self.page = lambda after: users.get_page(after_id=after)
        self.create = lambda n: users.create(UserDb(**values(n)))
        self.create_many = lambda numbers: users.create_many(UserDb(**values(n)) for n in numbers)
        self.save = users.update

    def rename(self, user: UserDb, name: str) -> Any:
        user.name = name
        return self.save(user)

    async def close(self) -> None:
        self.db.dispose()


class OursAsync(Ours):
    is_async = True
    context, repository = DbContextAsync, UserRepositoryAsync

    async def close(self) -> None:
        await self.db.dispose()


class OnEngine(Peer):
    """On an engine and a session factory of its own."""

    is_async = False

    async def open(self, url: URL) -> None:
        self.engine = create_engine(url, **engine_options(url))
        set_up(self.engine)
        self.sessions = sessionmaker(self.engine, expire_on_commit=False)

    async def close(self) -> None:
        self.engine.dispose()


class OnAsyncEngine(Peer):
    is_async = True

    async def open(self, url: URL) -> None:
        self.engine = create_async_engine(url, **engine_options(url))
        set_up(self.engine.sync_engine)
        self.sessions = async_sessionmaker(self.engine, expire_on_commit=False)

    async def close(self) -> None:
        await self.engine.dispose()


class Begin(OnEngine):
    name = "session, sessionmaker.begin()"

    def create(self, n: int) -> UserDb:
        user = UserDb(**values(n))
        with self.sessions.begin() as session:
            session.add(user)
        return user

    def get(self, id: int) -> UserDb | None:
        with self.sessions.begin() as session:
            return session.get(UserDb, id)

    def page(self, after: int) -> list[UserDb]:
        with self.sessions.begin() as session:
            return list(session.scalars(page(after)))

    def update(self, user: UserDb, name: str) -> None:
        user.name = name
        with self.sessions.begin() as session:
            session.add(user)

    def delete(self, id: int) -> None:
        with self.sessions.begin() as session:
            session.execute(delete(UserDb).where(UserDb.id == id))

    def create_many(self, numbers: range) -> None:
        with self.sessions.begin() as session:
            session.add_all([UserDb(**values(n)) for n in numbers])


class BeginAsync(OnAsyncEngine):
    name = Begin.name

    async def create(self, n: int) -> UserDb:
        user = UserDb(**values(n))
        async with self.sessions.begin() as session:
            session.add(user)
        return user

    async def get(self, id: int) -> UserDb | None:
        async with self.sessions.begin() as session:
            return await session.get(UserDb, id)

    async def page(self, after: int) -> list[UserDb]:
        async with self.sessions.begin() as session:
            return list(await session.scalars(page(after)))

    async def update(self, user: UserDb, name: str) -> None:
        user.name = name
        async with self.sessions.begin() as session:
            session.add(user)

    async def delete(self, id: int) -> None:
        async with self.sessions.begin() as session:
            await session.execute(delete(UserDb).where(UserDb.id == id))

    async def create_many(self, numbers: range) -> None:
        async with self.sessions.begin() as session:
            session.add_all([UserDb(**values(n)) for n in numbers])


class Commit(Begin):
    name = "session, commit()"

    def create(self, n: int) -> UserDb:
        user = UserDb(**values(n))
        with self.sessions() as session:
            session.add(user)
            session.commit()
        return user

    def get(self, id: int) -> UserDb | None:
        with self.sessions() as session:
            return session.get(UserDb, id)

    def page(self, after: int) -> list[UserDb]:
        with self.sessions() as session:
            return list(session.scalars(page(after)))

    def update(self, user: UserDb, name: str) -> None:
        user.name = name
        with self.sessions() as session:
            session.add(user)
            session.commit()

    def delete(self, id: int) -> None:
        with self.sessions() as session:
            session.execute(delete(UserDb).where(UserDb.id == id))
            session.commit()

    def create_many(self, numbers: range) -> None:
        with self.sessions() as session:
            session.add_all([UserDb(**values(n)) for n in numbers])
            session.commit()


class CommitAsync(BeginAsync):
    name = Commit.name

    async def create(self, n: int) -> UserDb:
        user = UserDb(**values(n))
        async with self.sessions() as session:
            session.add(user)
            await session.commit()
        return user

    async def get(self, id: int) -> UserDb | None:
        async with self.sessions() as session:
            return await session.get(UserDb, id)

    async def page(self, after: int) -> list[UserDb]:
        async with self.sessions() as session:
            return list(await session.scalars(page(after)))

    async def update(self, user: UserDb, name: str) -> None:
        user.name = name
        async with self.sessions() as session:
            session.add(user)
            await session.commit()

    async def delete(self, id: int) -> None:
        async with self.sessions() as session:
            await session.execute(delete(UserDb).where(UserDb.id == id))
            await session.commit()

    async def create_many(self, numbers: range) -> None:
        async with self.sessions() as session:
            session.add_all([UserDb(**values(n)) for n in numbers])
            await session.commit()


class AlchemyUsers(SQLAlchemySyncRepository[UserDb]):
    model_type = UserDb


class AlchemyUsersAsync(SQLAlchemyAsyncRepository[UserDb]):
    model_type = UserDb


class AdvancedAlchemy(OnEngine):
    name = "advanced-alchemy"

    def create(self, n: int) -> Any:
        with self.sessions() as session:
            return AlchemyUsers(session=session, auto_commit=True).add(UserDb(**values(n)))

    def get(self, id: int) -> Any:
        with self.sessions() as session:
            return AlchemyUsers(session=session).get_one_or_none(UserDb.id == id)

    def page(self, after: int) -> Any:
        with self.sessions() as session:
            return AlchemyUsers(session=session).get_many(UserDb.id > after, LimitOffset(100, 0), OrderBy("id", "asc"))

    def update(self, user: UserDb, name: str) -> Any:
        user.name = name
        with self.sessions() as session:
            return AlchemyUsers(session=session, auto_commit=True).update(user)

    def delete(self, id: int) -> Any:
        with self.sessions() as session:
            return AlchemyUsers(session=session, auto_commit=True).delete(id)

    def create_many(self, numbers: range) -> Any:
        with self.sessions() as session:
            users = AlchemyUsers(session=session, auto_commit=True)
            return users.add_many([UserDb(**values(n)) for n in numbers])


class AdvancedAlchemyAsync(OnAsyncEngine):
    name = AdvancedAlchemy.name

    async def create(self, n: int) -> Any:
        async with self.sessions() as session:
            return await AlchemyUsersAsync(session=session, auto_commit=True).add(UserDb(**values(n)))

    async def get(self, id: int) -> Any:
        async with self.sessions() as session:
            return await AlchemyUsersAsync(session=session).get_one_or_none(UserDb.id == id)

    async def page(self, after: int) -> Any:
        async with self.sessions() as session:
            users = AlchemyUsersAsync(session=session)
            return await users.get_many(UserDb.id > after, LimitOffset(100, 0), OrderBy("id", "asc"))

    async def update(self, user: UserDb, name: str) -> Any:
        user.name = name
        async with self.sessions() as session:
            return await AlchemyUsersAsync(session=session, auto_commit=True).update(user)

    async def delete(self, id: int) -> Any:
        async with self.sessions() as session:
            return await AlchemyUsersAsync(session=session, auto_commit=True).delete(id)

    async def create_many(self, numbers: range) -> Any:
        async with self.sessions() as session:
            users = AlchemyUsersAsync(session=session, auto_commit=True)
            return await users.add_many([UserDb(**values(n)) for n in numbers])


class BindManager(Peer):
    name, is_async = "sqlalchemy-bind-manager", False

    async def open(self, url: URL) -> None:
        address = url.render_as_string(hide_password=False)
        config = SQLAlchemyConfig(engine_url=address, engine_options=engine_options(url), async_engine=self.is_async)
        self.binds = SQLAlchemyBindManager(config)
        self.bind: Any = self.binds.get_bind()
        set_up(getattr(self.bind.engine, "sync_engine", self.bind.engine))
        kind = bind_manager.SQLAlchemyAsyncRepository if self.is_async else bind_manager.SQLAlchemyRepository
        self.users: Any = kind(self.bind, model_class=UserDb)
        self.users._max_query_limit = 100  # 50 is the most that it lets through
        self.get = self.users.get

    async def close(self) -> None:
        self.bind.engine.dispose()

    def create(self, n: int) -> Any:
        return self.users.save(UserDb(**values(n)))

    def page(self, after: int) -> Any:
        return self.users.cursor_paginated_find(100, bind_manager.CursorReference(column="id", value=after)).items

    def update(self, user: UserDb, name: str) -> Any:
        user.name = name
        return self.users.save(user)

    def delete(self, id: int) -> Any:
        return self.users.delete(self.users.get(id))

    def create_many(self, numbers: range) -> Any:
        return self.users.save_many([UserDb(**values(n)) for n in numbers])


class BindManagerAsync(BindManager):
    is_async = True

    async def close(self) -> None:
        await self.bind.engine.dispose()

    async def page(self, after: int) -> Any:
        reference = bind_manager.CursorReference(column="id", value=after)
        return (await self.users.cursor_paginated_find(100, reference)).items

    async def delete(self, id: int) -> None:
        await self.users.delete(await self.users.get(id))


OWNED: dict[str, Any] = {"back_populates": "user", "cascade_delete": True, "passive_deletes": True}


class Hero(SQLModel, table=True):
    __tablename__ = "users"
    id: int | None = Field(default=None, primary_key=True)
    name: str
    email: str = Field(unique=True)
    version: int | None = None
    tax_account: Optional["HeroAccount"] = Relationship(**OWNED)
    salaries: list["HeroSalary"] = Relationship(**OWNED)


class HeroAccount(SQLModel, table=True):
    __tablename__ = "tax_accounts"
    id: int | None = Field(default=None, primary_key=True)
    number: str
    user_id: int | None = Field(default=None, foreign_key="users.id", ondelete="CASCADE", unique=True)
    user: Hero = Relationship(back_populates="tax_account")


class HeroSalary(SQLModel, table=True):
    __tablename__ = "salaries"
    id: int | None = Field(default=None, primary_key=True)
    amount: Decimal
    paid_on: date
    user_id: int | None = Field(default=None, foreign_key="users.id", ondelete="CASCADE")
    user: Hero = Relationship(back_populates="salaries")


Hero.__mapper__.version_id_col = Hero.__table__.c.version  # "two people edit one row" is noticed, as in UserDb


class SqlModel(OnEngine):
    """As its tutorial writes it."""

    name = "SQLModel"

    def create(self, n: int) -> Any:
        return self.save(Hero(**values(n)))

    def save(self, user: Any) -> Any:
        with SQLModelSession(self.engine) as session:
            session.add(user)
            session.commit()
            session.refresh(user)
        return user

    def get(self, id: int) -> Any:
        with SQLModelSession(self.engine) as session:
            return session.get(Hero, id)

    def page(self, after: int) -> Any:
        with SQLModelSession(self.engine) as session:
            return session.exec(
                sqlmodel_select(Hero).where(col(Hero.id) > after).order_by(col(Hero.id)).limit(100)
            ).all()

    def update(self, user: Any, name: str) -> Any:
        user.name = name
        return self.save(user)

    def delete(self, id: int) -> None:
        with SQLModelSession(self.engine) as session:
            session.delete(session.get(Hero, id))
            session.commit()

    def create_many(self, numbers: range) -> None:
        with SQLModelSession(self.engine, expire_on_commit=False) as session:
            session.add_all([Hero(**values(n)) for n in numbers])
            session.commit()


class SqlModelAsync(OnAsyncEngine):
    name = SqlModel.name

    async def create(self, n: int) -> Any:
        return await self.save(Hero(**values(n)))

    async def save(self, user: Any) -> Any:
        async with SQLModelAsyncSession(self.engine) as session:
            session.add(user)
            await session.commit()
            await session.refresh(user)
        return user

    async def get(self, id: int) -> Any:
        async with SQLModelAsyncSession(self.engine) as session:
            return await session.get(Hero, id)

    async def page(self, after: int) -> Any:
        query = sqlmodel_select(Hero).where(col(Hero.id) > after).order_by(col(Hero.id)).limit(100)
        async with SQLModelAsyncSession(self.engine) as session:
            return (await session.exec(query)).all()

    async def update(self, user: Any, name: str) -> Any:
        user.name = name
        return await self.save(user)

    async def delete(self, id: int) -> None:
        async with SQLModelAsyncSession(self.engine) as session:
            await session.delete(await session.get(Hero, id))
            await session.commit()

    async def create_many(self, numbers: range) -> None:
        async with SQLModelAsyncSession(self.engine, expire_on_commit=False) as session:
            session.add_all([Hero(**values(n)) for n in numbers])
            await session.commit()


BUILT_ON_SQLALCHEMY: tuple[type[Peer], ...] = (
    Ours,
    OursAsync,
    Begin,
    BeginAsync,
    Commit,
    CommitAsync,
    AdvancedAlchemy,
    AdvancedAlchemyAsync,
    BindManager,
    BindManagerAsync,
    SqlModel,
    SqlModelAsync,
)
