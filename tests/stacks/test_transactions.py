"""What a transaction stores, and what it raises: the design's table of situations."""

from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload
from sqlalchemy.orm.exc import DetachedInstanceError, StaleDataError

from database.models import TaxAccount, UserDb
from tests.conftest import DRIVERS_ASYNC
from tests.models import a_family, a_user
from tests.stacks.helpers import Db, Users, names, read

DUPLICATE = insert(UserDb).values(name="duplicate", email="user1@example.com")
OVERFLOW = text("SELECT 1 UNION ALL SELECT abs(-9223372036854775807 - 2 + 1)")
CHILDREN = (selectinload(UserDb.tax_account), selectinload(UserDb.salaries))
# MySQL has no constraint that is checked by COMMIT.
NOT_MYSQL_ASYNC = [driver for driver in DRIVERS_ASYNC if "mysql" not in driver]
CHECKED_BY_COMMIT = (
    "CREATE TEMPORARY TABLE late (id INTEGER PRIMARY KEY, "
    "parent INTEGER REFERENCES late DEFERRABLE INITIALLY DEFERRED)"
)


async def test_the_end_of_the_block_commits_and_an_error_rolls_back(db: Db) -> None:
    async with db.transaction() as session:
        session.add(a_user(1))
        user = await Users(session).create(a_user(2))
    with pytest.raises(ZeroDivisionError):
        async with db.transaction() as session:
            await Users(session).create(a_user(3))
            raise ZeroDivisionError
    assert await names(db) == ["User 1", "User 2"]
    async with db.read_session() as session:
        found = await session.get_one(UserDb, user.id)
        await session.commit()
    assert (user.name, found.name) == ("User 2", "User 2"), "they stay readable"


async def test_the_block_may_break_a_loop_and_miss_a_row(db: Db, users: Users) -> None:
    await users.create_many([a_user(1), a_user(2)])
    async with db.transaction() as session:
        for user in await session.scalars(select(UserDb).order_by(UserDb.id)):
            user.name = "first"
            break
        with pytest.raises(InvalidRequestError, match="No row was found"):
            await session.get_one(UserDb, 0)
    assert sorted(await names(db)) == ["User 2", "first"]


async def test_a_caught_flush_error_fails_the_block(db: Db, users: Users) -> None:
    await users.create(a_user(1))
    with pytest.raises(InvalidRequestError):
        async with db.transaction() as session:
            session.add(a_user(2))
            with suppress(IntegrityError):
                await Users(session).create(a_user(1))
    assert await names(db) == ["User 1"]


@pytest.mark.parametrize("failing", [DUPLICATE, OVERFLOW], ids=["insert", "fetch"])
@pytest.mark.parametrize("way", ["transaction", "session", "engine"])
@pytest.mark.parametrize("commits", [False, True])
async def test_a_failed_statement_that_is_caught(
    db: Db, users: Users, way: str, commits: bool, failing: Any
) -> None:
    """PostgreSQL would silently roll back. The others store the rest."""
    ways: Any = {
        "transaction": [db.transaction, db.transaction],
        "session": [db.sessionmaker.begin, db.sessionmaker],
        "engine": [db.engine.begin, db.engine.connect],
    }
    await users.create(a_user(1))
    is_postgresql = db.engine.dialect.name == "postgresql"
    told = pytest.raises(InvalidRequestError, match="statement failed")
    with told if is_postgresql else nullcontext():
        async with ways[way][commits]() as session:
            await session.execute(insert(UserDb).values(name="2", email="2"))
            with suppress(DBAPIError):
                (await session.execute(failing)).all()
            if commits:
                await session.commit()
    # The connection has forgotten the failure.
    assert await names(db) == ["User 1"] + ["2"] * (not is_postgresql)


async def test_the_block_goes_on_after_a_commit_or_a_rollback(db: Db) -> None:
    async with db.transaction() as session:
        session.add(a_user(1))
        await session.commit()
        with suppress(IntegrityError):
            await session.execute(DUPLICATE)
        await session.rollback()
        session.add(a_user(2))
    assert await names(db) == ["User 1", "User 2"]


async def test_the_block_goes_on_after_a_failed_savepoint(db: Db, users: Users) -> None:
    rows = [a_user(n, tax_account=TaxAccount(number="SAVEPOINT")) for n in (1, 3)]
    await users.create(rows[0])
    async with db.transaction() as session:
        with pytest.raises(IntegrityError):
            async with session.begin_nested():
                await Users(session).create(rows[1])
        session.add(a_user(2))
    assert await names(db) == ["User 1", "User 2"]


async def test_a_session_is_refused_after_its_block(db: Db) -> None:
    async with db.transaction() as session, db.read_session() as read_session:
        plain = db.sessionmaker()
    await plain.close()
    for closed in (session, read_session, plain):
        with pytest.raises(InvalidRequestError, match="closed"):
            await closed.execute(select(UserDb))


async def test_later_options_load_more(db: Db, users: Users) -> None:
    id = (await users.create(a_family())).id
    async with db.transaction() as session:
        users = Users(session)
        user = await read(users, id)
        await users.get_by_id(id, selectinload(UserDb.salaries))
        await users.get_page()
        assert len(user.salaries) == 2
        await session.execute(text("DELETE FROM salaries"))
        again = select(UserDb).options(selectinload(UserDb.salaries))
        await session.scalar(again.execution_options(populate_existing=True))
        assert user.salaries == []


@pytest.mark.parametrize("url", NOT_MYSQL_ASYNC, indirect=True)
async def test_a_failed_commit_leaves_no_trace_on_the_connection(url: str) -> None:
    async with Db(url, pool_size=1, max_overflow=0) as db:
        begin: Any
        for begin in (db.transaction, db.sessionmaker.begin, db.engine.begin):
            with pytest.raises(IntegrityError):
                async with begin() as session:
                    await session.execute(text(CHECKED_BY_COMMIT))
                    await session.execute(DUPLICATE)
                    await session.execute(text("INSERT INTO late VALUES (1, -1)"))
        await Users(db).create(a_user(2))
        assert await names(db) == ["User 2"]


EDITS: list[Callable[[UserDb], object]] = [
    lambda user: setattr(user.salaries[0], "amount", 9),
    lambda user: user.salaries.pop(0),
    lambda user: setattr(user, "tax_account", None),
    lambda user: setattr(user, "tax_account", TaxAccount(number="new")),
]


@pytest.mark.parametrize("edit", EDITS)
async def test_what_a_savepoint_refused_as_stale_is_not_stored_later(
    db: Db, users: Users, edit: Callable[[UserDb], object]
) -> None:
    mine = await users.create(a_family())
    theirs: Any = await read(users, mine.id, *CHILDREN)
    theirs.salaries[0].amount += 1
    theirs.tax_account.number = "theirs"
    await users.update(theirs)
    edit(mine)
    async with db.transaction() as session:
        with pytest.raises(StaleDataError):
            async with session.begin_nested():
                await Users(session).update(mine)
    stored: Any = await read(users, theirs.id, *CHILDREN)
    assert stored.tax_account.number == "theirs"
    assert [row.amount for row in stored.salaries] == [2, 2]
    with pytest.raises(InvalidRequestError, match="read it again"):
        await users.update(mine)


async def test_create_works_again_after_a_rollback(db: Db, users: Users) -> None:
    family = a_family()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            async with db.transaction() as session:
                await Users(session).create(family)
                raise ZeroDivisionError
        with pytest.raises(InvalidRequestError, match="is new"):
            await users.update(family)
    assert await names(db) == []
    assert await users.create(family) is family
    stored = await read(users, family.id, *CHILDREN)
    assert stored.tax_account
    assert [salary.amount for salary in stored.salaries] == [1, 2]


async def test_any_session_suits_a_repository(db: Db) -> None:
    """The objects of this one expire with each commit, and load again."""
    async with AsyncSession(db.engine) as session:
        users = Users(session)
        user = await users.create(a_user())
        await session.commit()
        user.name = "changed"
        await users.update(user)
        assert await users.get_by_email(" USER1@example.com") is user
        await session.commit()
    assert await names(db) == ["changed"]


async def test_a_method_of_ones_own_is_one_transaction(db: Db) -> None:
    class People(Users):
        async def create_pair(self, *rows: UserDb) -> None:
            async with self.writing() as session:
                people = type(self)(session)
                for row in rows:
                    await people.create(row)

    with pytest.raises(IntegrityError):
        await People(db).create_pair(a_user(1), a_user(1))
    async with db.transaction() as session:
        await People(session).create_pair(a_user(2), a_user(3))
    assert await names(db) == ["User 2", "User 3"]


async def test_a_read_session_refuses_to_write(db: Db, users: Users) -> None:
    user = await users.create(a_user())
    new = insert(UserDb).values(name="2", email="2")
    for statement in (new, update(UserDb).values(name="changed"), delete(UserDb)):
        async with db.read_session() as session:
            for way in (session, await session.connection()):
                with pytest.raises(InvalidRequestError, match="for reading"):
                    await way.execute(statement)
    async with db.read_session() as session:
        session.add(a_user(3))
        (await session.get_one(UserDb, user.id)).name = "changed"
        await session.scalars(select(UserDb))
        with pytest.raises(InvalidRequestError, match="for reading"):
            await session.commit()
    assert await names(db) == ["User 1"]


async def test_run_transaction_repeats_only_conflicts(db: Db) -> None:
    async def work(session: AsyncSession) -> int:
        calls.append(1)
        session.add(a_user(len(errors)))
        if errors:
            raise errors.pop()
        return 7

    stale, detached = StaleDataError("changed"), DetachedInstanceError("lazy loading")
    calls: list[int] = []
    errors: Any = [stale, stale]
    assert await db.run_transaction(work) == 7
    assert await names(db) == ["User 0"]
    with pytest.raises(IntegrityError):  # User 0 is stored already
        await db.run_transaction(work)
    assert len(calls) == 4
    for errors in [InvalidRequestError("a mistake")], [detached, stale]:
        with pytest.raises(type(errors[0])):
            await db.run_transaction(work)
    errors = [stale]
    with pytest.raises(StaleDataError):
        await db.run_transaction(work, attempts=1)
