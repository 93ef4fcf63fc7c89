"""Create, read, update and delete, with keys and types of all kinds."""

from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import IntegrityError, InvalidRequestError, StatementError
from sqlalchemy.orm import joinedload, load_only, selectinload
from sqlalchemy.orm.exc import StaleDataError

from database.models import Salary, TaxAccount, UserDb
from tests.models import Animal, Color, Country, Dog, Membership, Note, a_family, a_user
from tests.stacks.helpers import Db, Users, count, names, read, repository_of

SELECTIN = (selectinload(UserDb.tax_account), selectinload(UserDb.salaries))
JOINED = (joinedload(UserDb.tax_account), joinedload(UserDb.salaries))


async def test_create_refuses_a_duplicate_or_stored_row(db: Db, users: Users) -> None:
    stored = await users.create(a_user(1))
    with pytest.raises(IntegrityError, match="hide_parameters") as caught:
        await users.create(a_user(2, email="USER1@example.com"))
    assert "User 2" not in str(caught.value)
    with pytest.raises(InvalidRequestError, match="stored already"):
        await users.create_many([a_user(2), stored])
    assert await names(db) == ["User 1"]


async def test_many_rows_are_created_together_or_not_at_all(users: Users) -> None:
    with pytest.raises(IntegrityError):
        await users.create_many([a_user(1), a_user(2), a_user(1)])
    assert await users.get_page() == []
    rows = await users.create_many(a_family(n) for n in range(100))
    page = await users.get_page(*SELECTIN)
    assert [(row.id, row.name) for row in rows] == [(u.id, u.name) for u in page]
    numbers = {(u.name, u.tax_account and u.tax_account.number) for u in page}
    assert numbers == {(f"User {n}", f"TAX-{n}") for n in range(100)}


async def test_the_id_of_a_deleted_row_is_not_given_out_again(users: Users) -> None:
    first = await users.create(a_family(1))
    await users.delete(first.id)
    second = await users.create(a_family(2))
    assert second.id > first.id
    assert second.salaries[0].id > first.salaries[1].id


async def test_what_is_missing_is_none_or_nothing(users: Users) -> None:
    assert await users.get_by_id(7) is None
    assert await users.get_by_email("nobody@example.com") is None
    assert await users.delete(7) is False


@pytest.mark.parametrize("options", [SELECTIN, JOINED])
async def test_children_are_loaded_by_options_only(users: Users, options: Any) -> None:
    await users.create_many([a_family(1), a_family(2)])
    page = await users.get_page(*options)
    by_id = await users.get_by_id(page[0].id, *options)
    by_email = await users.get_by_email("user1@example.com", *options)
    for user in (*page, by_id, by_email):
        assert user
        assert user.tax_account
        assert len(user.salaries) == 2
    for name in ("tax_account", "salaries"):
        with pytest.raises(InvalidRequestError, match="lazy='raise'"):
            getattr(await read(users, page[0].id), name)


async def test_pages_follow_the_primary_key(users: Users) -> None:
    ids = [row.id for row in await users.create_many(a_user(n) for n in range(5))]
    first = await users.get_page(limit=3)
    second = await users.get_page(after_id=first[-1].id, limit=3)
    assert [row.id for row in first] == ids[:3]
    assert [row.id for row in second] == ids[3:]


async def test_update_stores_the_changes_of_children(db: Db, users: Users) -> None:
    user: Any = await read(users, (await users.create(a_family())).id, *SELECTIN)
    user.salaries.pop(0)
    user.salaries[0].amount = Decimal("99.99")
    user.salaries.append(Salary(amount=Decimal(4), paid_on=date(2026, 4, 1)))
    for number in ("TAX-1", "new"):
        user.tax_account = TaxAccount(number=number)
        await users.update(user)
        user = await read(users, user.id, *SELECTIN)
        assert user.tax_account.number == number
        assert [row.amount for row in user.salaries] == [Decimal("99.99"), 4]
    user.tax_account = None
    await users.update(user)
    assert await count(db, TaxAccount) == 0


@pytest.mark.parametrize("meanwhile", ["changed", "deleted"])
@pytest.mark.parametrize("retried", [False, True])
async def test_update_refuses_a_row_that_somebody_changed_or_deleted(
    db: Db, users: Users, meanwhile: str, retried: bool
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
    with pytest.raises(StaleDataError):
        if retried:
            await db.run_transaction(lambda session: Users(session).update(mine))
        else:
            await users.update(mine)
    assert await names(db) == ([] if meanwhile == "deleted" else ["theirs"])
    assert await count(db, Salary) == (0 if meanwhile == "deleted" else 2)


async def test_update_refuses_a_row_without_its_version(users: Users) -> None:
    user = await users.create(a_user())
    partial = await read(users, user.id, load_only(UserDb.name))
    partial.name = "mine"
    with pytest.raises(InvalidRequestError, match="read it again"):
        await users.update(partial)


async def test_update_refuses_an_object_that_a_failure_has_expired(db: Db) -> None:
    """It has lost its changes. This one has no version that tells."""
    notes = repository_of(Note, db)
    first, second = await notes.create_many([Note(word="a"), Note(word="b")])
    second.id = first.id
    with pytest.raises(IntegrityError):
        await notes.update(second)
    with pytest.raises(InvalidRequestError, match="read it again"):
        await notes.update(second)


async def test_delete_takes_the_children_along(db: Db, users: Users) -> None:
    first, second = await users.create_many([a_family(1), a_family(2)])
    assert [await users.delete(first.id) for _ in range(2)] == [True, False]
    assert await names(db) == [second.name]
    assert [await count(db, model) for model in (TaxAccount, Salary)] == [1, 2]


async def test_a_key_may_be_a_uuid(db: Db) -> None:
    notes = repository_of(Note, db)
    await notes.create_many([Note(word="a"), Note(word="b")])
    first, second = await notes.get_page()
    assert [row.id for row in await notes.get_page(after_id=first.id)] == [second.id]
    found = await read(notes, first.id)
    found.word = "changed"
    assert await notes.update(found) is found
    assert found.edits == 1, "what the database computes can be read"
    assert [await notes.delete(first.id) for _ in range(2)] == [True, False]


async def test_a_key_may_be_a_string(db: Db) -> None:
    countries = repository_of(Country, db)
    await countries.create_many(Country(code=code, name="?") for code in ("NO", "CH"))
    first, second = await countries.get_page()
    assert (first.code, second.code) == ("CH", "NO")
    assert [row.code for row in await countries.get_page(after_id="CH")] == ["NO"]
    first.version = "of 1848"
    await countries.update(first)
    found = await read(countries, "CH")
    assert (found.version, found.version_id) == ("of 1848", 2)
    assert [await countries.delete("CH") for _ in range(2)] == [True, False]


async def test_a_key_may_have_two_columns(db: Db) -> None:
    members = repository_of(Membership, db)
    for team in (1, 2):
        await members.create(Membership(team=team, person="ada", role="lead"))
    found = await read(members, (1, "ada"))
    assert repr(found) == "Membership(1, ada)"
    found.role = "member"
    await members.update(found)
    assert [await members.delete((1, "ada")) for _ in range(2)] == [True, False]
    assert await count(db, Membership) == 1
    with pytest.raises(InvalidRequestError, match="one column"):
        await members.get_page()
    for wrong in (1, (1, "ada", 2)):
        with pytest.raises(InvalidRequestError, match="Incorrect number"):
            await members.get_by_id(wrong)


async def test_a_model_may_be_a_joined_subclass(db: Db) -> None:
    animals, dogs = repository_of(Animal, db), repository_of(Dog, db)
    rex = await dogs.create(Dog(name="Rex"))
    id = rex.id
    with pytest.raises(InvalidRequestError, match=r"repository of Mapper\[Animal"):
        await dogs.delete(id)
    [found] = await animals.get_page()
    found.name = "Max"
    await animals.update(found)
    rex.name = "stale"
    with pytest.raises(StaleDataError):
        await dogs.update(rex)
    assert await animals.delete(id) is True
    assert [await count(db, model) for model in (Animal, Dog)] == [0, 0]
    assert (await dogs.create(Dog(name="Rex"))).id > id


async def test_a_datetime_comes_back_in_utc(db: Db) -> None:
    notes = repository_of(Note, db)
    summer = datetime(2026, 7, 1, 12, 0, 0, 123456, timezone(timedelta(hours=2)))
    note = await notes.create(Note(word="summer", seen_at=summer))
    stored = await read(notes, note.id)
    assert str(stored.seen_at) == "2026-07-01 10:00:00.123456+00:00"
    with pytest.raises(StatementError, match="without a time zone"):
        await notes.create(Note(word="naive", seen_at=summer.replace(tzinfo=None)))


async def test_an_enum_is_stored_as_text(db: Db) -> None:
    notes = repository_of(Note, db)
    await notes.create(Note(word="red", color=Color.RED))
    [note] = await notes.get_page()
    assert note.color is Color.RED
    async with db.read_session() as session:
        assert await session.scalar(text("SELECT color FROM notes")) == "RED"
    with pytest.raises(StatementError, match="GREEN"):
        await notes.create(Note(word="green", color="GREEN"))


async def test_money_is_exact_and_adds_up(db: Db, users: Users) -> None:
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
