"""What a transaction stores, and what it raises: the design's table of situations."""

from collections.abc import Callable
from contextlib import nullcontext, suppress
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.exc import (
    IntegrityError,
    InvalidRequestError,
    NoResultFound,
)
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import selectinload
from sqlalchemy.orm.exc import StaleDataError

from database.context_async import DbContextAsync as Db
from database.models import Salary, TaxAccount, UserDb
from repositories.user_repository_async import UserRepositoryAsync as Users
from tests.conftest import DRIVERS_ASYNC
from tests.models import a_family, a_user
from tests.stacks.repositories import names, read

# MySQL has no constraint that is checked by COMMIT.
NOT_MYSQL_ASYNC = [driver for driver in DRIVERS_ASYNC if "mysql" not in driver]
DUPLICATE = insert(UserDb).values(name="duplicate", email="user1@example.com")
DEFERRED_FOREIGN_KEY = (
    "CREATE TEMPORARY TABLE late (id INTEGER PRIMARY KEY, "
    "parent INTEGER REFERENCES late DEFERRABLE INITIALLY DEFERRED)"
)
EVERYTHING = (selectinload(UserDb.tax_account), selectinload(UserDb.salaries))


class TestTransaction:
    async def test_is_committed_at_the_end_of_the_block(self, db: Db) -> None:
        async with db.transaction() as session:
            session.add(a_user(1))
            await Users(session).create(a_user(2))
        assert await names(db) == ["User 1", "User 2"]

    async def test_is_rolled_back_if_the_block_raises(self, db: Db) -> None:
        with pytest.raises(ZeroDivisionError):
            async with db.transaction() as session:
                await Users(session).create(a_user())
                raise ZeroDivisionError
        assert await names(db) == []

    async def test_may_break_a_loop_and_catch_no_result_found(
        self, db: Db, users: Users
    ) -> None:
        await users.create_many([a_user(1), a_user(2)])
        async with db.transaction() as session:
            for user in await session.scalars(select(UserDb)):
                user.name = "first"
                break
            with suppress(NoResultFound):
                (await session.scalars(select(UserDb).filter_by(name="nobody"))).one()
        assert await names(db) == ["first", "User 2"]

    async def test_may_be_committed_or_rolled_back_early(self, db: Db) -> None:
        async with db.transaction() as session:
            session.add(a_user(1))
            await session.commit()
        async with db.transaction() as session:
            session.add(a_user(2))
            await session.flush()
            await session.rollback()
            session.add(a_user(3))
        assert await names(db) == ["User 1", "User 3"]

    async def test_raises_after_a_failed_flush_was_caught(
        self, db: Db, users: Users
    ) -> None:
        await users.create(a_user(1))
        for method in (users.writing, db.transaction):
            with pytest.raises(InvalidRequestError):
                async with method() as session:
                    session.add(a_user(2))
                    with suppress(IntegrityError):
                        await Users(session).create(a_user(1))
        assert await names(db) == ["User 1"]

    async def test_after_a_failed_statement_was_caught(
        self, db: Db, users: Users
    ) -> None:
        """PostgreSQL would silently roll back. The others store the rest."""
        await users.create(a_user(1))
        is_postgresql = db.engine.dialect.name == "postgresql"
        with pytest.raises(InvalidRequestError) if is_postgresql else nullcontext():
            async with db.transaction() as session:
                await session.execute(insert(UserDb).values(name="2", email="2"))
                with suppress(IntegrityError):
                    await session.execute(DUPLICATE)
        assert await names(db) == ["User 1"] + ["2"] * (not is_postgresql)
        async with db.transaction():
            pass  # the connection has forgotten the failure

    async def test_goes_on_after_a_savepoint_that_failed(
        self, db: Db, users: Users
    ) -> None:
        await users.create(a_user(1))
        for statement in (DUPLICATE, None):
            async with db.transaction() as session:
                with pytest.raises(IntegrityError):
                    async with session.begin_nested():
                        if statement is not None:
                            await session.execute(statement)
                        await Users(session).create(a_user(1))
                session.add(a_user(2, email=f"{statement}"))
        assert await names(db) == ["User 1", "User 2", "User 2"]

    async def test_refuses_its_session_after_the_block(self, db: Db) -> None:
        async with db.transaction() as session:
            pass
        async with db.read_session() as read_session:
            pass
        for closed in (session, read_session):
            with pytest.raises(InvalidRequestError, match="closed"):
                await closed.execute(select(UserDb))

    async def test_loads_what_later_options_ask_for(self, db: Db, users: Users) -> None:
        id = (await users.create(a_family())).id
        async with db.transaction() as session:
            users = Users(session)
            user = await read(users, id)
            await users.get_by_id(id, selectinload(UserDb.salaries))
            assert len(user.salaries) == 2
            await users.get_page()
            assert len(user.salaries) == 2, "still loaded"

    @pytest.mark.parametrize("url", NOT_MYSQL_ASYNC, indirect=True)
    async def test_a_failed_commit_leaves_no_trace_on_the_connection(
        self, url: str
    ) -> None:
        """A foreign key that is checked by COMMIT alone."""
        async with Db(url, pool_size=1, max_overflow=0) as db:
            with pytest.raises(IntegrityError):
                async with db.transaction() as session:
                    await session.execute(text(DEFERRED_FOREIGN_KEY))
                    session.add(a_user(1))
                    await session.flush()
                    await session.execute(text("INSERT INTO late VALUES (1, -1)"))
            await Users(db).create(a_user(2))
            assert await names(db) == ["User 2"]

    async def test_errors_of_third_party_code_on_the_engine_are_its_own(
        self, db: Db, users: Users
    ) -> None:
        await users.create(a_user(1))
        if db.engine.dialect.name != "postgresql":
            async with db.engine.begin() as connection:
                await connection.execute(
                    insert(UserDb).values(name="2", email="2@example.com")
                )
                with suppress(IntegrityError):
                    await connection.execute(DUPLICATE)
            assert await names(db) == ["User 1", "2"]


EDITS: dict[str, Callable[[Any], object]] = {
    "name changed": lambda user: setattr(user, "name", "mine"),
    "salary changed": lambda user: setattr(user.salaries[1], "amount", Decimal(9)),
    "salary deleted": lambda user: user.salaries.pop(1),
    "account changed": lambda user: setattr(user.tax_account, "number", "9"),
    "account deleted": lambda user: setattr(user, "tax_account", None),
    "account replaced": lambda user: setattr(
        user, "tax_account", TaxAccount(number="new")
    ),
}


async def contents(db: Db) -> list[Any]:
    """Return what is stored in the demo's tables."""
    async with db.read_session() as session:
        rows = [
            (await session.execute(select(model.__table__))).all()
            for model in (UserDb, TaxAccount, Salary)
        ]
    return [sorted(map(str, found)) for found in rows]


class TestObjects:
    @pytest.mark.parametrize("mine", EDITS)
    async def test_a_stale_one_is_refused_in_a_savepoint_and_not_stored_later(
        self, db: Db, users: Users, mine: str
    ) -> None:
        me = await users.create(a_family())
        they = await users.get_by_id(me.id, *EVERYTHING)
        assert they
        part = mine.split()[0]
        EDITS[f"{part} changed"](they)
        await users.update(they)
        before = await contents(db)
        EDITS[mine](me)
        async with db.transaction() as session:
            with pytest.raises(StaleDataError):
                async with session.begin_nested():
                    await Users(session).update(me)
        assert await contents(db) == before
        with pytest.raises(InvalidRequestError, match="read it again"):
            await users.update(me)

    async def test_created_again_after_a_rollback_with_children(
        self, db: Db, users: Users
    ) -> None:
        family = a_family()
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                async with db.transaction() as session:
                    await Users(session).create(family)
                    raise ZeroDivisionError
            with pytest.raises(InvalidRequestError, match="is new"):
                await users.update(family)
        await users.create(family)
        stored = await users.get_by_id(family.id, *EVERYTHING)
        assert stored
        assert stored.tax_account
        assert [salary.amount for salary in stored.salaries] == [1, 2]

    async def test_an_expired_one_is_refused(self, db: Db, users: Users) -> None:
        user, other = await users.create_many([a_user(1), a_user(2)])
        user.name = "changed"
        user.email = other.email
        with pytest.raises(IntegrityError):
            await users.update(user)
        with pytest.raises(InvalidRequestError, match="read it again"):
            await users.update(user)
        assert await names(db) == ["User 1", "User 2"]

    async def test_work_in_a_session_that_is_not_the_contexts(self, db: Db) -> None:
        """Its objects expire with each commit, and load again."""
        async with async_sessionmaker(db.engine)() as session:
            users = Users(session)
            user = await users.create(a_user())
            await session.commit()
            await users.update(user)
            await session.refresh(user)
            user.name = "changed"
            await users.update(user)
            assert await users.get_by_email(" USER1@example.com") is user
            await session.commit()
        assert await names(db) == ["changed"]

    async def test_a_method_of_ones_own_is_one_transaction(self, db: Db) -> None:
        class People(Users):
            async def create_pair(self, *rows: UserDb) -> None:
                async with self.writing() as session:
                    people = type(self)(session)
                    for row in rows:
                        await people.create(row)

        await People(db).create_pair(a_user(1), a_user(2))
        with pytest.raises(IntegrityError):
            await People(db).create_pair(a_user(3), a_user(1))
        async with db.transaction() as session:
            await People(session).create_pair(a_user(4), a_user(5))
        assert await names(db) == ["User 1", "User 2", "User 4", "User 5"]


class TestReadSession:
    async def test_refuses_to_write(self, db: Db, users: Users) -> None:
        user = await users.create(a_user())
        for statement in (
            insert(UserDb).values(name="2", email="2"),
            update(UserDb).values(name="changed"),
            delete(UserDb),
        ):
            async with db.read_session() as session:
                with pytest.raises(InvalidRequestError, match="for reading"):
                    await session.execute(statement)
        for end in ("flush", "commit"):
            async with db.read_session() as session:
                session.add(a_user(3))
                (await session.get_one(UserDb, user.id)).name = "changed"
                await session.scalars(select(UserDb))
                with pytest.raises(InvalidRequestError, match="for reading"):
                    await getattr(session, end)()
        assert await names(db) == ["User 1"]

    async def test_keeps_its_objects_readable(self, db: Db, users: Users) -> None:
        await users.create(a_user())
        async with db.read_session() as session:
            user = (await session.scalars(select(UserDb))).one()
            await session.commit()
        assert user.name == "User 1"


class TestRunTransaction:
    @pytest.mark.parametrize("attempts", [1, 3])
    async def test_repeats_a_stale_update_and_no_more_than_asked(
        self, db: Db, users: Users, attempts: int
    ) -> None:
        async def work(session: Any) -> None:
            calls.append(1)
            session.add(a_user(2))
            await Users(session).update(stale.pop())

        calls: list[int] = []
        user = await users.create(a_user(1))
        stale = [await read(users, user.id) for _ in range(3)]
        for row in [user, *stale]:
            row.name = "changed"
        await users.update(user)
        with pytest.raises(StaleDataError):
            await db.run_transaction(work, attempts=attempts)
        assert len(calls) == attempts
        assert await names(db) == ["changed"]

    async def test_returns_the_result_of_the_attempt_that_succeeds(
        self, db: Db
    ) -> None:
        async def work(session: Any) -> int:
            calls.append(1)
            session.add(a_user(len(calls)))
            if len(calls) == 1:
                raise StaleDataError("somebody else was faster")
            return len(calls)

        calls: list[int] = []
        assert await db.run_transaction(work) == 2
        assert await names(db) == ["User 2"]

    async def test_does_not_repeat_what_cannot_succeed(
        self, db: Db, users: Users
    ) -> None:
        async def work(session: Any) -> None:
            calls.append(1)
            session.add(a_user(1))

        calls: list[int] = []
        await users.create(a_user(1))
        with pytest.raises(IntegrityError):
            await db.run_transaction(work)
        assert len(calls) == 1
