"""Create, read, update and delete, with keys and types of all kinds."""

import uuid
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import event, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError, InvalidRequestError, StatementError
from sqlalchemy.orm import joinedload, selectinload
from sqlalchemy.orm.exc import DetachedInstanceError, StaleDataError

from database.context_async import DbContextAsync as Db
from database.models import Salary, TaxAccount, UserDb
from repositories.user_repository_async import UserRepositoryAsync as Users
from tests.models import (
    Animal,
    Color,
    Country,
    Dog,
    Item,
    Membership,
    Note,
    Order,
    Part,
    a_family,
    a_user,
)
from tests.stacks.repositories import (
    AnimalRepositoryAsync,
    CountryRepositoryAsync,
    DogRepositoryAsync,
    MembershipRepositoryAsync,
    NoteRepositoryAsync,
    OrderRepositoryAsync,
    names,
    read,
)

SELECTIN = (selectinload(UserDb.tax_account), selectinload(UserDb.salaries))
JOINED = (joinedload(UserDb.tax_account), joinedload(UserDb.salaries))


async def count(db: Db, model: Any) -> int:
    async with db.read_session() as session:
        return await session.scalar(select(func.count()).select_from(model)) or 0


class TestCreate:
    async def test_returns_the_row_with_its_key(self, users: Users) -> None:
        user = a_family()
        assert await users.create(user) is user
        assert user.version_id == 1
        assert (await read(users, user.id)).email == "user1@example.com"

    async def test_refuses_a_duplicate_without_showing_its_values(
        self, db: Db, users: Users
    ) -> None:
        await users.create(a_user(1))
        with pytest.raises(IntegrityError, match="hide_parameters") as caught:
            await users.create(a_user(2, email="USER1@example.com"))
        assert "User 2" not in str(caught.value)
        assert await names(db) == ["User 1"]

    async def test_refuses_a_row_that_is_stored_already(
        self, db: Db, users: Users
    ) -> None:
        stored = await users.create(a_user(1))
        with pytest.raises(InvalidRequestError, match="stored already"):
            await users.create_many([a_user(2), stored])
        assert await names(db) == ["User 1"]

    async def test_many_are_stored_together_or_not_at_all(
        self, db: Db, users: Users
    ) -> None:
        with pytest.raises(IntegrityError):
            await users.create_many([a_user(1), a_user(2), a_user(1)])
        assert await users.get_page() == []
        rows = await users.create_many(a_family(n) for n in range(100))
        page = await users.get_page(*SELECTIN)
        assert [(row.id, row.name) for row in rows] == [(u.id, u.name) for u in page]
        assert {(u.name, u.tax_account and u.tax_account.number) for u in page} == {
            (f"User {n}", f"TAX-{n}") for n in range(100)
        }

    async def test_does_not_give_out_the_id_of_a_deleted_row(
        self, users: Users
    ) -> None:
        first = await users.create(a_family(1))
        await users.delete(first.id)
        second = await users.create(a_family(2))
        assert second.id > first.id
        assert second.salaries[0].id > first.salaries[1].id


class TestRead:
    async def test_returns_none_or_nothing_for_what_is_missing(
        self, users: Users
    ) -> None:
        assert await users.get_by_id(7) is None
        assert await users.get_by_email("nobody@example.com") is None
        assert await users.get_page() == []
        assert await users.delete(7) is False

    @pytest.mark.parametrize("options", [SELECTIN, JOINED])
    async def test_loads_children_by_options(self, users: Users, options: Any) -> None:
        await users.create_many([a_family(1), a_family(2)])
        page = await users.get_page(*options)
        by_id = await users.get_by_id(page[0].id, *options)
        by_email = await users.get_by_email("user1@example.com", *options)
        for user in (*page, by_id, by_email):
            assert user
            assert user.tax_account
            assert len(user.salaries) == 2

    async def test_raises_for_children_that_no_option_loaded(
        self, users: Users
    ) -> None:
        user = await read(users, (await users.create(a_family())).id)
        with pytest.raises(InvalidRequestError, match="lazy='raise'"):
            print(user.salaries)
        with pytest.raises(InvalidRequestError, match="lazy='raise'"):
            print(user.tax_account)

    async def test_pages_follow_the_primary_key(self, users: Users) -> None:
        rows = await users.create_many(a_user(n) for n in range(5))
        first = await users.get_page(limit=3)
        second = await users.get_page(after_id=first[-1].id, limit=3)
        ids = [row.id for row in rows]
        assert [row.id for row in first] == ids[:3]
        assert [row.id for row in second] == ids[3:]


class TestUpdate:
    async def test_stores_changed_columns_and_counts_the_version(
        self, db: Db, users: Users
    ) -> None:
        statements: list[str] = []
        user = await users.create(a_user())
        event.listen(
            db.engine.sync_engine,
            "before_cursor_execute",
            lambda *args: statements.append(args[2]),
        )
        user.name = "Ada"
        assert await users.update(user) is user
        assert [("name" in sql, "email" in sql) for sql in statements] == [
            (True, False)
        ]
        found = await read(users, user.id)
        assert (found.name, found.version_id, user.version_id) == ("Ada", 2, 2)

    async def test_stores_the_changes_of_children(self, db: Db, users: Users) -> None:
        user = await users.get_by_id((await users.create(a_family())).id, *SELECTIN)
        assert user
        user.salaries.pop(0)
        user.salaries[0].amount = Decimal("99.99")
        user.salaries.append(Salary(amount=Decimal(4), paid_on=date(2026, 4, 1)))
        user.tax_account = None
        await users.update(user)
        found = await users.get_by_id(user.id, *SELECTIN)
        assert found
        assert [row.amount for row in found.salaries] == [Decimal("99.99"), 4]
        assert await count(db, TaxAccount) == 0

    async def test_replaces_a_child(self, users: Users) -> None:
        for n, number in ((1, "TAX-1"), (2, "new")):
            user = await users.create(a_family(n))
            user.tax_account = TaxAccount(number=number)
            await users.update(user)
            found = await users.get_by_id(user.id, *SELECTIN)
            assert found
            assert found.tax_account
            assert found.tax_account.number == number

    @pytest.mark.parametrize("meanwhile", ["changed", "deleted"])
    async def test_refuses_a_row_that_somebody_changed_or_deleted(
        self, db: Db, users: Users, meanwhile: str
    ) -> None:
        mine = await users.create(a_family())
        if meanwhile == "deleted":
            await users.delete(mine.id)
        else:
            async with db.transaction() as session:
                values = {"name": "theirs", "version_id": UserDb.version_id + 1}
                await session.execute(update(UserDb).values(values))
        mine.name = "mine"
        mine.salaries.pop()
        for method in (users.update, lambda row: db.run_transaction(update_of(row))):
            with pytest.raises((StaleDataError, InvalidRequestError)) as caught:
                await method(mine)
            if method == users.update:
                assert caught.type is StaleDataError
        assert await names(db) == ([] if meanwhile == "deleted" else ["theirs"])
        assert await count(db, Salary) == (0 if meanwhile == "deleted" else 2)

    async def test_refuses_a_new_row(self, db: Db, users: Users) -> None:
        with pytest.raises(InvalidRequestError, match="is new"):
            await users.update(a_user())
        assert await names(db) == []

    async def test_removes_children_of_children(self, db: Db) -> None:
        orders = OrderRepositoryAsync(db)
        order = Order(title="one", items=[Item(parts=[Part(), Part()])])
        await orders.create(order)
        found = await orders.get_by_id(
            order.id, selectinload(Order.items).selectinload(Item.parts)
        )
        assert found
        found.items[0].parts.pop()
        await orders.update(found)
        assert await count(db, Part) == 1
        found.items.clear()
        await orders.update(found)
        assert await count(db, Part) == 0


def update_of(row: UserDb) -> Any:
    async def work(session: Any) -> UserDb:
        return await Users(session).update(row)

    return work


async def test_delete_takes_the_children_along(db: Db, users: Users) -> None:
    first, second = await users.create_many([a_family(1), a_family(2)])
    assert await users.delete(first.id) is True
    assert await users.delete(first.id) is False
    assert await names(db) == [second.name]
    assert await count(db, TaxAccount) == 1
    assert await count(db, Salary) == 2


class TestKeys:
    async def test_a_uuid(self, db: Db) -> None:
        notes = NoteRepositoryAsync(db)
        rows = await notes.create_many([Note(word="a"), Note(word="b")])
        assert all(isinstance(row.id, uuid.UUID) for row in rows)
        ids = [row.id for row in await notes.get_page()]
        found = await notes.get_by_id(ids[0])
        assert found
        assert [row.id for row in await notes.get_page(after_id=ids[0])] == ids[1:]
        found.word = "changed"
        await notes.update(found)
        found.word = "changed again"
        await notes.update(found)
        assert found.edits == 2, "what the database computes can be read"
        assert await notes.delete(ids[0]) is True
        assert await notes.get_by_id(ids[0]) is None
        assert await notes.get_by_id(uuid.uuid4()) is None

    async def test_a_string(self, db: Db) -> None:
        countries = CountryRepositoryAsync(db)
        await countries.create_many(
            [Country(code="NO", name="Norway"), Country(code="CH", name="Switzerland")]
        )
        assert [row.code for row in await countries.get_page()] == ["CH", "NO"]
        assert [row.code for row in await countries.get_page(after_id="CH")] == ["NO"]
        assert await countries.delete("CH") is True
        assert await countries.get_by_id("CH") is None

    async def test_a_composite_key(self, db: Db) -> None:
        members = MembershipRepositoryAsync(db)
        await members.create_many(
            Membership(team=team, person="ada", role="lead") for team in (1, 2)
        )
        found = await members.get_by_id((1, "ada"))
        assert found
        assert repr(found) == "Membership(1, ada)"
        found.role = "member"
        await members.update(found)
        assert await members.get_by_id((1, "bob")) is None
        assert [await members.delete((1, "ada")) for _ in range(2)] == [True, False]
        assert await count(db, Membership) == 1
        with pytest.raises(InvalidRequestError, match="one column"):
            await members.get_page()
        for wrong in (1, (1, "ada", 2)):
            with pytest.raises(InvalidRequestError, match="Incorrect number"):
                await members.get_by_id(wrong)

    async def test_of_joined_table_inheritance(self, db: Db) -> None:
        animals, dogs = AnimalRepositoryAsync(db), DogRepositoryAsync(db)
        rex = await dogs.create(Dog(name="Rex"))
        id = rex.id
        with pytest.raises(InvalidRequestError, match="repository of Animal"):
            await dogs.delete(id)
        [found] = await animals.get_page()
        found.name = "Max"
        await animals.update(found)
        rex.name = "stale"
        with pytest.raises(StaleDataError):
            await dogs.update(rex)
        assert await animals.delete(id) is True
        assert [await count(db, model) for model in (Animal, Dog)] == [0, 0]


class TestTypes:
    async def test_a_datetime_comes_back_in_utc(self, db: Db, users: Users) -> None:
        user = await users.create(a_user())
        found = await read(users, user.id)
        assert found.created_at == user.created_at
        assert found.created_at.tzinfo is UTC
        assert datetime.now(UTC) - found.created_at < timedelta(minutes=1)
        notes = NoteRepositoryAsync(db)
        summer = datetime(2026, 7, 1, 12, 0, 0, 123456, timezone(timedelta(hours=2)))
        note = await notes.create(Note(word="summer", seen_at=summer))
        stored = await notes.get_by_id(note.id)
        assert stored
        assert str(stored.seen_at) == "2026-07-01 10:00:00.123456+00:00"
        with pytest.raises(StatementError, match="without a time zone"):
            await notes.create(Note(word="naive", seen_at=datetime(2026, 7, 1)))  # noqa: DTZ001

    async def test_an_enum_is_stored_as_text(self, db: Db) -> None:
        notes = NoteRepositoryAsync(db)
        await notes.create(Note(word="red", color=Color.RED))
        [note] = await notes.get_page()
        assert note.color is Color.RED
        async with db.read_session() as session:
            assert await session.scalar(text("SELECT color FROM notes")) == "RED"
        wrong: Any = "GREEN"
        with pytest.raises(StatementError, match="GREEN"):
            await notes.create(Note(word="green", color=wrong))

    async def test_money_is_exact_and_adds_up(self, db: Db, users: Users) -> None:
        amounts = [Decimal("0.10"), Decimal("0.20"), Decimal("9999999999.99")]
        salaries = [Salary(amount=amount, paid_on=date.max) for amount in amounts]
        await users.create(a_user(salaries=salaries))
        async with db.read_session() as session:
            found = await session.scalars(select(Salary.amount).order_by(Salary.id))
            assert [str(amount) for amount in found] == [str(a) for a in amounts]
            small = select(func.sum(Salary.amount)).where(Salary.amount < Decimal(10))
            assert str(await session.scalar(small)) == "0.30"
            assert await session.scalar(text("SELECT max(amount) > 9 FROM salaries"))
        with pytest.raises(ValueError, match="decimal places"):
            Salary(amount=Decimal("1.999"))

    async def test_an_insert_statement_needs_no_version(
        self, db: Db, users: Users
    ) -> None:
        async with db.transaction() as session:
            await session.execute(
                insert(UserDb).values(name="A", email="a@example.com")
            )
        [user] = await users.get_page()
        assert user.version_id == 1
        assert user.created_at.tzinfo is UTC


async def test_detached_objects_stay_readable(db: Db, users: Users) -> None:
    async with db.transaction() as session:
        user = await Users(session).create(a_user())
    assert user.name == "User 1"
    with pytest.raises((InvalidRequestError, DetachedInstanceError)):
        print(user.salaries)
