"""The contract of the two stacks, written once and run for every driver."""

from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy.orm import joinedload, selectinload
from sqlalchemy.orm.exc import StaleDataError

from database.context_async import DbContextAsync
from database.models import Salary, TaxAccount, UserDb
from repositories.user_repository_async import UserRepositoryAsync
from tests.stacks import Stack, scalars, statements, sync_engine

EVERYTHING = (selectinload(UserDb.tax_account), selectinload(UserDb.salaries))


def a_user(n: int = 1, **values: Any) -> UserDb:
    return UserDb(**{"name": f"User {n}", "email": f"user{n}@example.com", **values})


def a_family(n: int = 1) -> UserDb:
    """A user with a tax account and three salaries."""
    salaries = [Salary(amount=Decimal(f"{month}.10"), paid_on=date(2026, month, 1)) for month in (1, 2, 3)]
    return a_user(n, tax_account=TaxAccount(number=f"TAX-{n}"), salaries=salaries)


class TestCreate:
    async def test_returns_the_same_object_with_its_id(self, users: UserRepositoryAsync) -> None:
        user = a_user()
        assert await users.create(user) is user
        assert user.id > 0
        assert user.version == 1

    async def test_children_go_with_it(self, users: UserRepositoryAsync) -> None:
        user = await users.create(a_family())
        found = await users.get_by_id(user.id, *EVERYTHING)
        assert found
        assert found is not user
        assert found.tax_account
        assert (found.tax_account.number, found.tax_account.user_id) == ("TAX-1", user.id)
        assert [(s.amount, s.paid_on, s.user_id) for s in found.salaries] == [
            (Decimal(f"{month}.10"), date(2026, month, 1), user.id) for month in (1, 2, 3)
        ]

    async def test_values_come_back_as_they_went(self, users: UserRepositoryAsync) -> None:
        name = "Zoë \U0001f980 O'Brien; DROP TABLE users --%s"
        user = await users.create(a_user(name=name, email="'%\\\"zoë@example.com"))
        found = await users.get_by_id(user.id)
        assert found
        assert (found.name, found.email, found.version) == (name, "'%\\\"zoë@example.com", 1)

    @pytest.mark.parametrize("field", ["email", "number"])
    async def test_duplicate_raises_and_writes_nothing(self, users: UserRepositoryAsync, field: str) -> None:
        await users.create(a_family(1))
        user = a_family(2)
        if field == "email":
            user.email = "USER1@example.com"
        else:
            assert user.tax_account
            user.tax_account.number = "TAX-1"
        with pytest.raises(IntegrityError):
            await users.create(user)
        assert len(await users.get_page()) == 1

    async def test_can_be_mended_and_tried_again(self, users: UserRepositoryAsync) -> None:
        await users.create(a_family(1))
        user = a_family(2)
        assert user.tax_account
        user.tax_account.number = "TAX-1"
        with pytest.raises(IntegrityError):
            await users.create(user)
        assert user.id is None, "the refused id may belong to somebody else by now"
        await users.create(a_user(3))
        user.tax_account.number = "TAX-2"
        await users.create(user)
        found = await users.get_by_id(user.id, *EVERYTHING)
        assert found
        assert found.tax_account
        assert (found.name, found.tax_account.number, len(found.salaries)) == ("User 2", "TAX-2", 3)

    async def test_a_second_create_raises_and_writes_nothing(self, users: UserRepositoryAsync) -> None:
        user = await users.create(a_user())
        user.name = "changed"
        with pytest.raises(InvalidRequestError, match="use update"):
            await users.create(user)
        with pytest.raises(InvalidRequestError, match="use update"):
            await users.create_many([a_user(2), user])
        assert [user.name for user in await users.get_page()] == ["User 1"]

    async def test_near_duplicates_are_no_duplicates(self, users: UserRepositoryAsync) -> None:
        """MySQL's own collation takes é for e, and A for a in a tax number."""
        await users.create(a_user(email="rene@example.com", tax_account=TaxAccount(number="ab")))
        await users.create(a_user(email="rené@example.com", tax_account=TaxAccount(number="AB")))
        found = await users.get_by_email("RENÉ@example.com")
        assert found
        assert found.email == "rené@example.com"


class TestCreateMany:
    async def test_ids_belong_to_their_users(self, users: UserRepositoryAsync) -> None:
        created = await users.create_many(a_user(n) for n in range(1_000))
        stored = {user.id: user.email for user in await users.get_page(limit=1_000)}
        assert {user.id: user.email for user in created} == stored
        assert len(stored) == 1_000

    async def test_all_or_nothing(self, users: UserRepositoryAsync) -> None:
        batch = [a_user(1), a_user(2), a_user(1)]
        with pytest.raises(IntegrityError):
            await users.create_many(batch)
        assert await users.get_page() == []
        batch[2].email = "another@example.com"
        assert len(await users.create_many(batch)) == 3
        assert len(await users.get_page()) == 3

    async def test_nobody(self, db: DbContextAsync, users: UserRepositoryAsync) -> None:
        with statements(db) as seen:
            assert await users.create_many([]) == []
        assert seen == []

    async def test_children_go_with_their_own_parents(self, users: UserRepositoryAsync) -> None:
        await users.create_many([a_family(n) for n in range(5)])
        for user in await users.get_page(*EVERYTHING):
            assert user.tax_account
            assert user.tax_account.number == f"TAX-{user.name.removeprefix('User ')}"
            assert [salary.paid_on.month for salary in user.salaries] == [1, 2, 3]


class TestGet:
    async def test_who_is_not_there_is_none(self, users: UserRepositoryAsync) -> None:
        for id in (0, -1, 12345, 2**31, 2**63, -(2**70), 10**30):
            assert await users.get_by_id(id) is None
            assert await users.delete(id) is False
        assert await users.get_by_email("nobody@example.com") is None
        assert await users.get_by_email("") is None

    @pytest.mark.parametrize("id", ["1", 1.0, None, True, b"1"])
    async def test_an_id_is_a_whole_number(self, users: UserRepositoryAsync, id: Any) -> None:
        for call in (users.get_by_id, users.delete):
            with pytest.raises((TypeError, ValueError)):
                await call(id)
        with pytest.raises((TypeError, ValueError)):
            await users.get_page(after_id=id)

    async def test_email_in_any_case(self, users: UserRepositoryAsync) -> None:
        user = await users.create(a_user(email="Ada.Löw@Example.COM"))
        for email in ("ada.löw@example.com", "ADA.LÖW@EXAMPLE.COM", "Ada.Löw@Example.COM"):
            found = await users.get_by_email(email, *EVERYTHING)
            assert found
            assert (found.id, found.tax_account, found.salaries) == (user.id, None, [])

    async def test_what_was_not_loaded_says_so(self, users: UserRepositoryAsync) -> None:
        user = await users.get_by_id((await users.create(a_family())).id)
        assert user
        for relationship in ("tax_account", "salaries"):
            with pytest.raises(InvalidRequestError, match="lazy='raise'"):
                getattr(user, relationship)

    async def test_joined_loading(self, users: UserRepositoryAsync) -> None:
        await users.create_many([a_family(n) for n in (1, 2, 3)])
        options = (joinedload(UserDb.tax_account), joinedload(UserDb.salaries))
        page = await users.get_page(*options, limit=2)
        assert [len(user.salaries) for user in page] == [3, 3]
        for user in (await users.get_by_id(page[0].id, *options), await users.get_by_email(page[0].email, *options)):
            assert user
            assert len(user.salaries) == 3


class TestGetPage:
    async def test_pages_in_id_order(self, users: UserRepositoryAsync) -> None:
        ids = [user.id for user in await users.create_many(a_user(n) for n in range(7))]
        first = await users.get_page(limit=3)
        second = await users.get_page(after_id=first[-1].id, limit=3)
        third = await users.get_page(after_id=second[-1].id, limit=3)
        assert [len(page) for page in (first, second, third)] == [3, 3, 1]
        assert [user.id for page in (first, second, third) for user in page] == sorted(ids)
        assert await users.get_page(after_id=third[-1].id) == []
        assert await users.get_page(after_id=2**63) == []
        assert len(await users.get_page(after_id=-(10**30), limit=10**30)) == 7

    @pytest.mark.parametrize("limit", [0, -1, -(2**70), "1", 1.5, None])
    async def test_a_limit_is_at_least_one(self, users: UserRepositoryAsync, limit: Any) -> None:
        with pytest.raises((TypeError, ValueError)):
            await users.get_page(limit=limit)


class TestUpdate:
    async def test_writes_only_what_changed(self, db: DbContextAsync, users: UserRepositoryAsync) -> None:
        user = await users.create(a_user())
        user.name = "Ada"
        with statements(db) as seen:
            assert await users.update(user) is user
        assert len(seen) == 1
        assert "name" in seen[0]
        assert "email" not in seen[0]
        assert user.version == 2
        found = await users.get_by_id(user.id)
        assert found
        assert (found.name, found.version) == ("Ada", 2)

    async def test_children(self, users: UserRepositoryAsync) -> None:
        user = await users.create(a_family())
        found = await users.get_by_id(user.id, *EVERYTHING)
        assert found
        found.salaries.pop(0)
        found.salaries[0].amount = Decimal("99.99")
        found.salaries.append(Salary(amount=Decimal("4"), paid_on=date(2026, 4, 1)))
        found.tax_account = None
        await users.update(found)
        again = await users.get_by_id(user.id, *EVERYTHING)
        assert again
        assert again.tax_account is None
        assert [salary.amount for salary in again.salaries] == [Decimal("99.99"), Decimal("3.10"), Decimal("4.00")]

    @pytest.mark.parametrize("meanwhile", ["changed", "deleted"])
    async def test_two_people_edit_one_row(self, users: UserRepositoryAsync, meanwhile: str) -> None:
        mine = await users.create(a_user())
        theirs = await users.get_by_id(mine.id)
        assert theirs
        if meanwhile == "changed":
            theirs.name = "theirs"
            await users.update(theirs)
        else:
            await users.delete(theirs.id)
        mine.name = "mine"
        with pytest.raises(StaleDataError):
            await users.update(mine)
        assert mine.name == "mine", "the refused object can still be read"
        fresh = await users.get_by_id(mine.id)
        assert (fresh.name if fresh else None) == ("theirs" if meanwhile == "changed" else None)

    async def test_can_be_mended_and_tried_again(self, users: UserRepositoryAsync) -> None:
        await users.create(a_family(1))
        user = await users.get_by_id((await users.create(a_user(2))).id, *EVERYTHING)
        assert user
        user.name = "Ada"
        user.tax_account = TaxAccount(number="TAX-1")
        with pytest.raises(IntegrityError):
            await users.update(user)
        assert (user.name, user.version) == ("Ada", 1)
        user.tax_account.number = "TAX-2"
        await users.update(user)
        found = await users.get_by_id(user.id, *EVERYTHING)
        assert found
        assert found.tax_account
        assert (found.name, found.tax_account.number, found.version) == ("Ada", "TAX-2", 2)

    async def test_a_new_user_raises_and_writes_nothing(self, users: UserRepositoryAsync) -> None:
        with pytest.raises(InvalidRequestError, match="use create"):
            await users.update(a_user())
        assert await users.get_page() == []


class TestDelete:
    async def test_says_whether_there_was_one(self, users: UserRepositoryAsync) -> None:
        user = await users.create(a_user())
        assert await users.delete(user.id) is True
        assert await users.delete(user.id) is False
        assert await users.get_by_id(user.id) is None

    async def test_children_go_too(self, db: DbContextAsync, users: UserRepositoryAsync) -> None:
        """SQLite enforces foreign keys only on connections that ask for it."""
        await users.create(a_family(1))
        user = await users.create(a_family(2))
        await users.delete(user.id)
        for model, left in ((UserDb, 1), (TaxAccount, 1), (Salary, 3)):
            assert await scalars(db, select(func.count()).select_from(model)) == [left]


class TestTransaction:
    async def test_all(self, stack: Stack, db: DbContextAsync, users: UserRepositoryAsync) -> None:
        async with db.transaction() as tx:
            in_tx = stack.users(tx)
            ada = await in_tx.create(a_family(1))
            ada.name = "Ada"
            await in_tx.update(ada)
            await in_tx.create(a_user(2))
            assert [user.name for user in await in_tx.get_page()] == ["Ada", "User 2"], "it sees its own writes"
        assert [user.name for user in await users.get_page()] == ["Ada", "User 2"]

    async def test_or_nothing(self, stack: Stack, db: DbContextAsync, users: UserRepositoryAsync) -> None:
        kept = await users.create(a_family(1))
        with pytest.raises(ZeroDivisionError):
            async with db.transaction() as tx:
                await stack.users(tx).create(a_family(2))
                await stack.users(tx).delete(kept.id)
                raise ZeroDivisionError
        assert [user.id for user in await users.get_page()] == [kept.id]

    async def test_a_caught_failure_undoes_only_itself(
        self, stack: Stack, db: DbContextAsync, users: UserRepositoryAsync
    ) -> None:
        async with db.transaction() as tx:
            in_tx = stack.users(tx)
            await in_tx.create(a_user(1))
            with pytest.raises(IntegrityError):
                await in_tx.create_many([a_user(2), a_user(1)])
            await in_tx.create(a_user(3))
        assert [user.name for user in await users.get_page()] == ["User 1", "User 3"]

    async def test_in_a_transaction(self, stack: Stack, db: DbContextAsync, users: UserRepositoryAsync) -> None:
        async with db.transaction() as tx:
            await stack.users(tx).create(a_user(1))
            with pytest.raises(ZeroDivisionError):
                async with tx.transaction() as inner:
                    await stack.users(inner).create(a_user(2))
                    raise ZeroDivisionError
            async with tx.transaction() as inner:
                await stack.users(inner).create(a_user(3))
            await stack.users(tx).create(a_user(4))
        assert [user.name for user in await users.get_page()] == ["User 1", "User 3", "User 4"]


class TestSchema:
    async def test_drop_all_and_create_all(self, stack: Stack, db: DbContextAsync) -> None:
        users = stack.users(db)
        await users.create(a_family())
        await db.drop_all()
        await db.create_all()
        await db.create_all()
        assert await users.get_page() == []


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        (UserDb, "name", ""),
        (UserDb, "name", " \t\n"),
        (UserDb, "name", "x" * 101),
        (UserDb, "name", None),
        (UserDb, "name", 7),
        (UserDb, "name", "a\x00b"),
        (UserDb, "name", "\ud800"),
        (UserDb, "email", ""),
        (UserDb, "email", "@x"),
        (UserDb, "email", "nobody.example.com"),
        (UserDb, "email", "x" * 243 + "@example.com"),
        (UserDb, "email", None),
        (UserDb, "version", 1),
        (TaxAccount, "number", " "),
        (TaxAccount, "number", "x" * 33),
        (Salary, "amount", Decimal("-0.01")),
        (Salary, "amount", Decimal("0.001")),
        (Salary, "amount", Decimal("10000000000")),
        (Salary, "amount", Decimal("NaN")),
        (Salary, "amount", Decimal("sNaN")),
        (Salary, "amount", Decimal("Infinity")),
        (Salary, "amount", 1.5),
        (Salary, "amount", "1.50"),
        (Salary, "amount", None),
        (Salary, "paid_on", datetime(2026, 1, 1)),  # noqa: DTZ001 - a time is just what it must not have
        (Salary, "paid_on", "2026-01-01"),
        (Salary, "paid_on", None),
    ],
)
def test_what_a_column_cannot_hold_raises_where_it_is_set(model: Any, field: str, value: Any) -> None:
    with pytest.raises(ValueError):
        model(**{field: value})
    with pytest.raises(ValueError):
        setattr(model(), field, value)


async def test_the_longest_and_the_largest_fit(users: UserRepositoryAsync) -> None:
    user = a_user(name="\U0001f980" * 100, email="é" * 242 + "@example.com", tax_account=TaxAccount(number="é" * 32))
    amounts = [Decimal("0"), 7, Decimal("0.10"), Decimal("1E+2"), Decimal("9999999999.99")]
    user.salaries = [Salary(amount=amount, paid_on=date(1000 + n, 12, 31)) for n, amount in enumerate(amounts)]
    await users.create(user)
    found = await users.get_by_id(user.id, *EVERYTHING)
    assert found
    assert found.tax_account
    assert (found.name, found.email, found.tax_account.number) == ("\U0001f980" * 100, user.email, "é" * 32)
    assert [str(salary.amount) for salary in found.salaries] == ["0.00", "7.00", "0.10", "100.00", "9999999999.99"]
    assert [salary.amount for salary in found.salaries] == [salary.amount for salary in user.salaries]


async def test_decimals_are_exact_and_can_be_added_up_by_the_database(
    db: DbContextAsync, users: UserRepositoryAsync
) -> None:
    """SQLite keeps no decimals: as floats, these don't make 0.30."""
    amounts = [Decimal("0.10"), Decimal("0.20"), Decimal("9999999999.99")]
    await users.create(a_user(salaries=[Salary(amount=amount, paid_on=date(2026, 1, 1)) for amount in amounts]))
    assert await scalars(db, select(func.sum(Salary.amount)).where(Salary.amount < 1)) == [Decimal("0.30")]
    assert await scalars(db, select(Salary.amount).order_by(Salary.amount.desc()).limit(1)) == [amounts[2]]


async def test_statements_per_call(db: DbContextAsync, users: UserRepositoryAsync) -> None:
    async def expect(number: int, call: Any) -> Any:
        with statements(db) as seen:
            result = await call
        assert len(seen) == number, seen
        return result

    await expect(1, users.create(a_user(1)))
    user = await expect(3, users.create(a_family(2)))
    await expect(1, users.get_by_id(user.id))
    await expect(2, users.get_by_id(user.id, selectinload(UserDb.salaries)))
    await expect(1, users.get_by_email(user.email))
    await expect(3, users.get_by_email(user.email, *EVERYTHING))
    await expect(1, users.get_page())
    await expect(3, users.get_page(*EVERYTHING))
    user.name = "Ada"
    await expect(1, users.update(user))
    await expect(0, users.update(user))
    await expect(1, users.delete(user.id))


async def test_your_options_win_over_the_defaults(stack: Stack) -> None:
    async with stack.context(hide_parameters=False) as db:
        assert sync_engine(db).hide_parameters is False
    async with stack.context(connect_args={}) as db:
        assert sync_engine(db).hide_parameters is True
        assert await stack.users(db).get_page() == []
