"""Repositories for the models of the tests."""

from sqlalchemy import select

from database.context_async import DbContextAsync as Db
from database.models import UserDb
from repositories.repository_async import RepositoryAsync
from repositories.user_repository_async import UserRepositoryAsync as Users
from tests.models import Animal, Country, Dog, Membership, Note, Order


class NoteRepositoryAsync(RepositoryAsync[Note]):
    model = Note


class CountryRepositoryAsync(RepositoryAsync[Country]):
    model = Country


class MembershipRepositoryAsync(RepositoryAsync[Membership]):
    model = Membership


class AnimalRepositoryAsync(RepositoryAsync[Animal]):
    model = Animal


class DogRepositoryAsync(RepositoryAsync[Dog]):
    model = Dog


class OrderRepositoryAsync(RepositoryAsync[Order]):
    model = Order


async def read(users: Users, id: int) -> UserDb:
    user = await users.get_by_id(id)
    assert user
    return user


async def names(db: Db) -> list[str]:
    """Return the names of all users in the order of their ids."""
    async with db.read_session() as session:
        query = select(UserDb.name).order_by(UserDb.id)
        return list((await session.scalars(query)).all())
