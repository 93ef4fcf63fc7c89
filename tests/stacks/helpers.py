"""Short names and helpers for the tests that run in both stacks."""

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm.interfaces import ORMOption

from database.base import Base
from database.context_async import DbContextAsync
from database.models import UserDb
from repositories.repository_async import RepositoryAsync
from repositories.user_repository_async import UserRepositoryAsync

Db = DbContextAsync
Users = UserRepositoryAsync


def repository_of[M: Base](model: type[M], db: Db) -> RepositoryAsync[M]:
    """Return a repository for a model that has no repository class of its own."""
    repository = RepositoryAsync[M](db)
    repository.model = model
    return repository


async def read[M: Base](
    repository: RepositoryAsync[M], id: Any, *options: ORMOption
) -> M:
    """Return the row with this primary key. Fail the test if there is none."""
    row = await repository.get_by_id(id, *options)
    assert row
    return row


async def names(db: Db) -> list[str]:
    """Return the names of all users in the order of their ids."""
    async with db.read_session() as session:
        return list(await session.scalars(select(UserDb.name).order_by(UserDb.id)))


async def count(db: Db, model: type[Base]) -> int | None:
    async with db.read_session() as session:
        return await session.scalar(select(func.count()).select_from(model))
