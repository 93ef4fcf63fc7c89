"""Users in the database, for async code. user_repository.py is the same without async and await."""

from collections.abc import Iterable
from typing import Any, cast

from sqlalchemy import CursorResult, bindparam, delete, inspect, select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm.interfaces import ORMOption

from database.context_async import DbContextAsync
from database.models import UserDb, check_int, fold_email

# Made once: SQLAlchemy takes a new statement apart at each call, to find the SQL that it compiled before.
BY_ID = select(UserDb).where(UserDb.id == bindparam("id"))
BY_EMAIL = select(UserDb).where(UserDb.email == bindparam("email"))
PAGE = select(UserDb).where(UserDb.id > bindparam("after_id")).order_by(UserDb.id).limit(bindparam("limit"))
DELETE = delete(UserDb).where(UserDb.id == bindparam("id")).execution_options(synchronize_session=False)


class UserRepositoryAsync:
    """Create, read, update and delete users; each call is a transaction of its own, or a savepoint in yours.

    users = UserRepositoryAsync(db)
    ada = await users.create(UserDb(name="Ada", email="ada@example.com"))
    ada = await users.get_by_id(ada.id, selectinload(UserDb.salaries))

    Options are SQLAlchemy loader options: a relationship that no option loads raises InvalidRequestError when read.
    """

    def __init__(self, db: DbContextAsync) -> None:
        self._db = db

    async def create(self, user: UserDb) -> UserDb:
        """Store a new user with its tax account and salaries, and return the same object with its id.

        Raises IntegrityError for a taken e-mail address or tax number, InvalidRequestError for a user stored before.
        """
        await self.create_many([user])
        return user

    async def create_many(self, users: Iterable[UserDb]) -> list[UserDb]:
        """Store all of these new users or none, and return them with their ids. Raises what create does."""
        users = list(users)
        if any(inspect(user).key for user in users):
            raise InvalidRequestError("create is for new users; this one is stored already: use update")
        async with self._db.sessionmaker() as session:
            session.add_all(users)
            await session.commit()
        return users

    async def get_by_id(self, id: int, *options: ORMOption) -> UserDb | None:
        """Return the user, or None if there is none. Raises TypeError if the id is no whole number."""
        query = BY_ID.options(*options) if options else BY_ID
        async with self._db.read_sessionmaker() as session:
            return (await session.scalars(query, {"id": check_int("id", id)})).unique().one_or_none()

    async def get_by_email(self, email: str, *options: ORMOption) -> UserDb | None:
        """Return the user with this e-mail address, in any case of letters, or None."""
        query = BY_EMAIL.options(*options) if options else BY_EMAIL
        async with self._db.read_sessionmaker() as session:
            return (await session.scalars(query, {"email": fold_email(email)})).unique().one_or_none()

    async def get_page(self, *options: ORMOption, after_id: int = 0, limit: int = 100) -> list[UserDb]:
        """Return up to limit users in id order, from the first id after after_id: the last page is a short one.

        Every page costs the same, however far: page = await users.get_page(after_id=page[-1].id)
        Raises ValueError for a limit below 1, TypeError for a number that isn't whole.
        """
        query = PAGE.options(*options) if options else PAGE
        values = {"after_id": check_int("after_id", after_id), "limit": check_int("limit", limit, least=1)}
        async with self._db.read_sessionmaker() as session:
            return list((await session.scalars(query, values)).unique())

    async def update(self, user: UserDb) -> UserDb:
        """Write what changed since the user was read, children included, and return the same object.

        Raises StaleDataError if somebody changed or deleted the user meanwhile (read it again, then repeat the change),
        IntegrityError as create does, InvalidRequestError for a user that was never stored.
        """
        if not inspect(user).key:
            raise InvalidRequestError("update is for stored users; this one is new: use create")
        async with self._db.sessionmaker() as session:
            session.add(user)
            await session.commit()
        return user

    async def delete(self, id: int) -> bool:
        """Delete the user with its tax account and salaries; return whether there was one."""
        async with self._db.sessionmaker() as session:
            result = cast(CursorResult[Any], await session.execute(DELETE, {"id": check_int("id", id)}))
            await session.commit()
        return result.rowcount > 0
