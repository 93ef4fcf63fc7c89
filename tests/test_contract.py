"""The contract of the two stacks, written once and run for every driver."""

import traceback
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import MetaData, String, UniqueConstraint, func, inspect, make_url, select, text, update
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, InvalidRequestError
from sqlalchemy.orm import Mapped, joinedload, load_only, mapped_column, selectinload
from sqlalchemy.orm.exc import StaleDataError

from database.base import Base
from database.context import DbContext
from database.context_async import DbContextAsync as Db
from database.engine import explain
from database.models import Salary, TaxAccount, UserDb
from repositories.user_repository_async import UserRepositoryAsync as Users
from tests.stacks import Stack, scalars, statements, sync_engine

EVERYTHING = (selectinload(UserDb.tax_account), selectinload(UserDb.salaries))
JOINED = (joinedload(UserDb.tax_account), joinedload(UserDb.salaries))


def a_user(n: int = 1, **values: Any) -> UserDb:
    return UserDb(**{"name": f"User {n}", "email": f"user{n}@example.com", **values})


def a_salary(amount: str, month: int = 1) -> Salary:
    return Salary(amount=Decimal(amount), paid_on=date(2026, month, 1))


def a_family(n: int = 1) -> UserDb:
    """A user with a tax account and three salaries."""
    return a_user(n, tax_account=TaxAccount(number=f"TAX-{n}"), salaries=[a_salary(f"{m}.10", m) for m in (1, 2, 3)])


async def read(users: Users, id: int, *options: Any) -> UserDb:
    found = await users.get_by_id(id, *(options or EVERYTHING))
    assert found
    return found


async def names(users: Users) -> list[str]:
    return [user.name for user in await users.get_page()]


def number(user: UserDb) -> str | None:
    return user.tax_account.number if user.tax_account else None


class TestCreate:
    async def test_values_come_back_as_they_went(self, users: Users) -> None:
        """The longest, and the largest. Blanks around them, and the case of an e-mail address, are no part of them."""
        texts = ["\U0001f980" * 100, "é" * 242 + "@example.com", "é" * 32]
        amounts = [Decimal(0), 7, Decimal("0.10"), Decimal("1E+2"), Decimal("9999999999.99")]
        days = [date.min, date(1582, 10, 10), date(2026, 2, 28), date(2028, 2, 29), date.max]
        user = a_user(name=f" {texts[0]}\n", email=texts[1].upper(), tax_account=TaxAccount(number=texts[2]))
        user.salaries = [Salary(amount=amounts[n], paid_on=days[n]) for n in range(5)]
        assert await users.create(user) is user
        found = await read(users, user.id)
        assert [found.name, found.email, number(found)] == texts
        assert (found.version, user.version, found is user) == (1, 1, False)
        assert [str(salary.amount) for salary in found.salaries] == ["0.00", "7.00", "0.10", "100.00", "9999999999.99"]
        assert [(salary.paid_on, salary.user_id) for salary in found.salaries] == [(day, user.id) for day in days]

    async def test_a_duplicate_is_refused_and_the_error_shows_no_values(self, users: Users) -> None:
        await users.create(a_family(1))
        for user in (a_user(2, email="USER1@example.com"), a_user(2, tax_account=TaxAccount(number="TAX-1"))):
            with pytest.raises(IntegrityError, match="hide_parameters") as caught:
                await users.create(user)
            assert "User 2" not in str(caught.value)
        assert await names(users) == ["User 1"]

    async def test_near_duplicates_are_no_duplicates_and_emails_have_no_case(self, users: Users) -> None:
        """MySQL's own collation takes é for e, and A for a in a tax number."""
        await users.create(a_user(email="rene@example.com", tax_account=TaxAccount(number="ab")))
        await users.create(a_user(name="René", email="René@Example.com", tax_account=TaxAccount(number="AB")))
        for email in ("rené@example.com", "RENÉ@EXAMPLE.COM", " René@Example.com "):
            assert getattr(await users.get_by_email(email), "name", None) == "René"

    async def test_many_are_all_or_nothing_each_with_its_own_children(self, users: Users) -> None:
        with pytest.raises(IntegrityError):
            await users.create_many([a_user(1), a_user(2), a_user(1)])
        assert await users.get_page() == []
        created = await users.create_many(a_family(n) for n in range(200))
        page = await users.get_page(*EVERYTHING, limit=200)
        assert {user.id: user.email for user in created} == {user.id: user.email for user in page}
        found = {(user.name, number(user), len(user.salaries)) for user in page}
        assert found == {(f"User {n}", f"TAX-{n}", 3) for n in range(200)}

    async def test_an_id_is_never_given_out_twice(self, users: Users) -> None:
        kept, gone = await users.create_many([a_family(1), a_family(2)])
        ids = [gone.id, gone.salaries[-1].id]
        await users.delete(gone.id)
        new = await users.create(a_family(3))
        assert [new.id > ids[0] > kept.id, new.salaries[0].id > ids[1]] == [True, True]


class TestRead:
    async def test_who_is_not_there_is_none(self, users: Users) -> None:
        user = await users.create(a_user(id=1 - 2**63))
        for id in (0, -1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**30, -(10**30)):
            assert await users.get_by_id(id) is None
            assert await users.delete(id) is False
        for id in (2**63 - 1, 2**63, 10**30):
            assert await users.get_page(after_id=id) == []
        for email in ("nobody@example.com", "", "%"):
            assert await users.get_by_email(email) is None
        assert await users.get_by_id(user.id), "who has a number near the end was not taken for one beyond"

    @pytest.mark.parametrize("options", [EVERYTHING, JOINED], ids=["selectin", "joined"])
    async def test_options_load_the_children(self, users: Users, options: Any) -> None:
        await users.create_many([a_family(n) for n in (1, 2, 3)])
        page = await users.get_page(*options, limit=2)
        by_email = await users.get_by_email("user3@example.com", *options)
        assert by_email
        found = [*page, by_email, await read(users, page[0].id, *options)]
        assert [(number(user), len(user.salaries)) for user in found] == [(f"TAX-{n}", 3) for n in (1, 2, 3, 1)]

    async def test_what_no_option_loaded_says_so(self, users: Users) -> None:
        user = await read(users, (await users.create(a_family())).id, load_only(UserDb.version))
        for look in (lambda: user.tax_account, lambda: user.salaries, lambda: setattr(user, "salaries", [])):
            with pytest.raises(InvalidRequestError, match="lazy='raise'"):
                look()

    async def test_pages_in_id_order(self, users: Users) -> None:
        ids = [user.id for user in await users.create_many(a_user(n) for n in range(7))]
        pages, last = [], -(10**30)
        while page := await users.get_page(after_id=last, limit=3):
            pages.append([user.id for user in page])
            last = page[-1].id
        assert pages == [ids[:3], ids[3:6], ids[6:]]
        assert len(await users.get_page(limit=10**30)) == 7
        for limit in (0, -1, -(10**30)):
            with pytest.raises(ValueError, match="at least 1"):
                await users.get_page(limit=limit)

    async def test_a_read_session_keeps_nothing(self, db: Db, users: Users) -> None:
        stored, changed = await users.create_many([a_user(1), a_user(2)])
        async with db.read_session() as session:
            await session.execute(update(UserDb).values(name="lost"))
            await session.execute(text("UPDATE users SET name = 'lost'"))
        assert await names(users) == ["User 1", "User 2"]
        stored.name, changed.name, new = "lost", "Ada", a_user(3)
        async with db.read_session() as session:
            session.add_all([stored, new])
            await session.flush()
        async with db.read_session() as session:
            session.add(changed)
            assert "Ada" not in (await session.execute(select(UserDb.name))).scalars().all()
        with statements(db) as seen:
            assert repr(stored) == "UserDb(id={})".format(*inspect(stored).identity or ())
        assert seen == []
        for row in (stored, new):  # was flushed: an update would take it for stored, and write nothing
            with pytest.raises(InvalidRequestError, match="spent"):
                await users.update(row)
        await users.update(changed)  # was not
        assert await names(users) == ["User 1", "Ada"]


EDITS: dict[str, Callable[[Any], object]] = {
    "salary changed": lambda user: setattr(user.salaries[1], "amount", Decimal(9)),
    "salary deleted": lambda user: user.salaries.pop(1),
    "account changed": lambda user: setattr(user.tax_account, "number", "9"),
    "account deleted": lambda user: setattr(user, "tax_account", None),
    "account replaced": lambda user: setattr(user, "tax_account", TaxAccount(number="new")),
}


class TestUpdate:
    async def test_writes_only_what_changed(self, db: Db, users: Users) -> None:
        user = await users.create(a_user())
        user.name = "Ada"
        with statements(db) as seen:
            assert await users.update(user) is user
        assert [("name" in sql, "email" in sql) for sql in seen] == [(True, False)]
        found = await read(users, user.id)
        assert (found.name, found.version, user.version) == ("Ada", 2, 2)

    async def test_stores_changes_and_deletes_children(self, db: Db, users: Users) -> None:
        user = await read(users, (await users.create(a_family())).id)
        user.salaries.pop(0)
        user.salaries[0].amount = Decimal("99.99")
        user.salaries.append(a_salary("4"))
        user.tax_account = None
        await users.update(user)
        found = await read(users, user.id)
        assert [salary.amount for salary in found.salaries] == [Decimal("99.99"), Decimal("3.10"), Decimal("4.00")]
        assert await scalars(db, select(func.count()).select_from(TaxAccount)) == [0]

    @pytest.mark.parametrize("options", [EVERYTHING, ()], ids=["loaded", "not_loaded"])
    async def test_a_new_tax_account_replaces_the_old_one(self, users: Users, options: Any) -> None:
        for n, new in ((1, "TAX-1"), (2, "new")):
            user = await users.get_by_id((await users.create(a_family(n))).id, *options)
            assert user
            user.tax_account = TaxAccount(number=new)
            await users.update(user)
            assert number(await read(users, user.id)) == new

    @pytest.mark.parametrize("theirs", ["changed", "deleted"])
    @pytest.mark.parametrize("mine", EDITS)
    async def test_the_later_of_two_who_edit_a_child_is_told(self, users: Users, mine: str, theirs: str) -> None:
        me = await users.create(a_family())
        they = await read(users, me.id)
        EDITS[f"{mine.split()[0]} {theirs}"](they)
        await users.update(they)
        EDITS[mine](me)
        with pytest.raises(StaleDataError):
            await users.update(me)
        found = await read(users, they.id)
        assert [salary.amount for salary in found.salaries] == [salary.amount for salary in they.salaries]
        assert number(found) == number(they)

    @pytest.mark.parametrize("meanwhile", ["changed", "deleted"])
    async def test_the_later_of_two_who_edit_a_user_is_told(self, db: Db, users: Users, meanwhile: str) -> None:
        me = await users.create(a_family())
        if meanwhile == "deleted":
            await users.delete(me.id)
        else:
            async with db.session() as session:  # a query of one's own counts the version itself
                await session.execute(update(UserDb).values(name="theirs", version=UserDb.version + 1))
        me.name = "mine"
        me.salaries.pop()
        with pytest.raises(StaleDataError):
            await users.update(me)
        assert await names(users) == ([] if meanwhile == "deleted" else ["theirs"])
        assert await scalars(db, select(func.count()).select_from(Salary)) == [0 if meanwhile == "deleted" else 3]

    async def test_an_object_without_its_version_is_refused(self, users: Users) -> None:
        id = (await users.create(a_family())).id
        user = await read(users, id, load_only(UserDb.name))
        parent = await read(users, id, selectinload(UserDb.salaries).load_only(Salary.amount))
        user.name, parent.salaries[0].amount = "Ada", Decimal(7)
        for row in (user, parent):
            with pytest.raises(InvalidRequestError, match="without its version"):
                await users.update(row)
        found = await read(users, id)
        assert (found.name, found.salaries[0].amount) == ("User 1", Decimal("1.10"))

    async def test_new_and_stored_objects_are_not_taken_for_each_other(self, users: Users) -> None:
        stored = await users.create(a_user())
        with pytest.raises(InvalidRequestError, match="is new"):
            await users.update(a_user(2))
        with pytest.raises(InvalidRequestError, match="was stored before"):
            await users.create_many([a_user(3), stored])
        assert await names(users) == ["User 1"]

    async def test_merge_takes_an_object_into_a_session(self, db: Db, users: Users) -> None:
        family, alone = await users.create_many([a_family(1), a_user(2)])
        EDITS["salary changed"](family)
        family.name = alone.name = "Ada"
        async with db.session() as session:
            await session.merge(family, options=EVERYTHING)
            await session.merge(alone)
        family, alone = await users.get_page(*EVERYTHING)
        assert (family.name, family.salaries[1].amount, number(family)) == ("Ada", Decimal(9), "TAX-1")
        assert (alone.name, alone.salaries, number(alone)) == ("Ada", [], None)


async def test_delete_takes_the_children_along_and_says_whether_there_was_one(db: Db, users: Users) -> None:
    _, user, other = await users.create_many([a_family(1), a_family(2), a_family(3)])
    assert [await users.delete(user.id), await users.delete(user.id)] == [True, False]
    found = await users.get_by_id(other.id)
    with statements(db) as seen:
        async with db.session() as session:
            await session.delete(found)
    assert len(seen) == 1, "the database deletes the children, a session of one's own need not read them"
    for model, left in ((UserDb, 1), (TaxAccount, 1), (Salary, 3)):
        assert await scalars(db, select(func.count()).select_from(model)) == [left]


async def test_statements_of_each_call(stack: Stack, db: Db, users: Users) -> None:
    async def expect(number: int, call: Any) -> Any:
        with statements(db) as seen:
            result = await call
        assert len(seen) == number, seen
        return result

    async def check(users: Users) -> None:
        await expect(0, users.create_many([]))
        other = await expect(1, users.create(a_user(1)))
        user = await expect(3, users.create(a_user(2, tax_account=TaxAccount(number="1"), salaries=[a_salary("1")])))
        await expect(1, users.get_by_id(user.id))
        await expect(2, users.get_by_id(user.id, selectinload(UserDb.salaries)))
        await expect(1, users.get_by_id(user.id, *JOINED))
        await expect(3, users.get_by_email(user.email, *EVERYTHING))
        await expect(3, users.get_page(*EVERYTHING))
        await expect(0, users.update(user))
        user.name = "Ada"
        await expect(1, users.update(user))
        for id in (user.id, other.id):
            await expect(1, users.delete(id))

    await check(users)
    async with db.transaction() as tx:
        await check(stack.users(tx))


async def test_money_means_the_same_inside_the_database(db: Db, users: Users) -> None:
    cent, more, whole, most = amounts = [Decimal(amount) for amount in ("0.10", "0.20", "5.00", "9999999999.99")]
    await users.create(a_user(salaries=[a_salary(str(amount)) for amount in amounts]))
    amount, small = Salary.amount, Salary.amount < 1
    assert await scalars(db, select(amount * 2).where(small).order_by(amount)) == [Decimal("0.20"), Decimal("0.40")]
    assert await scalars(db, select(func.sum(amount)).where(small)) == [Decimal("0.30")]
    assert await scalars(db, select(func.sum(amount))) == [Decimal("10000000005.29")]
    assert [f"{mean:.2f}" for mean in await scalars(db, select(func.avg(amount)).where(small))] == ["0.15"]
    assert await scalars(db, select(amount).where(amount == more)) == [more]
    assert await scalars(db, select(amount).where(amount > cent).order_by(amount)) == [more, whole, most]
    assert await scalars(db, text("SELECT amount / 2 FROM salaries WHERE amount = 5")) == [Decimal("2.5")]


@pytest.mark.parametrize(
    ("model", "field", "values"),
    [
        (UserDb, "name", ["", " \t\n", "x" * 101, None, 7, "a\x00b", "\ud800"]),
        (UserDb, "email", ["", "@x", "nobody.example.com", "x" * 243 + "@example.com", None, "a\x00@example.com"]),
        (TaxAccount, "number", ["", " ", "x" * 33, None, 7, "\x00", "\udfff"]),
        (
            Salary,
            "amount",
            [*map(Decimal, ("-0.01", "0.001", "1E10", "NaN", "sNaN", "Infinity")), -1, 1.5, "1.50", None],
        ),
        (Salary, "paid_on", [datetime(2026, 1, 1), "2026-01-01", None]),  # noqa: DTZ001 - a time is what it can't hold
    ],
)
def test_a_value_that_the_model_cannot_hold_is_refused_where_it_is_set(model: Any, field: str, values: Any) -> None:
    for value in values:
        with pytest.raises(ValueError):
            setattr(model(), field, value)


class Own(Base):
    __abstract__ = True
    metadata = MetaData(naming_convention=Base.metadata.naming_convention)  # not created with the others


class Note(Own):
    """A model that adds options of its own to those of Base."""

    __tablename__ = "notes"
    __table_args__ = (UniqueConstraint("word"), {"comment": "what people note"})
    __mapper_args__ = {**Base.__mapper_args__, "confirm_deleted_rows": False}
    word: Mapped[str] = mapped_column(String(20))
    edits: Mapped[int] = mapped_column(server_default="0", onupdate=text("edits + 1"))


async def test_a_model_with_options_of_its_own_keeps_those_of_base(stack: Stack, db: Db) -> None:
    with stack.sync() as sync:
        Own.metadata.drop_all(sync.engine)
        Own.metadata.create_all(sync.engine)
    notes = stack.rows(db, Note)
    mine, other = await notes.create_many([Note(word="e"), Note(word="é")])
    theirs = (await notes.get_page())[0]
    theirs.word = "once"
    await notes.update(theirs)
    assert (theirs.word, theirs.edits, theirs.version) == ("once", 1, 2), "what the database computes can be read"
    mine.word = "twice"
    with pytest.raises(StaleDataError):
        await notes.update(mine)
    await notes.delete(other.id)
    assert (await notes.create(Note(word="\U0001f980"))).id > other.id


class TestContext:
    async def test_drops_and_makes_the_tables(self, db: Db, users: Users) -> None:
        await users.create(a_family())
        await db.drop_all()
        await db.create_all()
        assert await users.get_page() == []

    @pytest.mark.parametrize(("in_url", "in_args"), [(None, None), (7, None), (None, 5), (7, 5)])
    async def test_your_options_win_over_the_defaults(
        self, stack: Stack, monkeypatch: pytest.MonkeyPatch, in_url: int | None, in_args: int | None
    ) -> None:
        def connect(*_: object, **options: Any) -> None:
            raise LookupError(int(options[name]))

        name = "timeout" if "sqlite" in stack.url or "asyncpg" in stack.url else "connect_timeout"
        seconds = in_args or in_url or (30 if "sqlite" in stack.url else 10)
        url = make_url(stack.url).update_query_dict({name: str(in_url)} if in_url else {})
        options: dict[str, Any] = {"connect_args": {name: in_args}, "hide_parameters": False} if in_args else {}
        async with Stack(url, is_async=stack.is_async).context(**options) as db:
            monkeypatch.setattr(sync_engine(db).dialect, "connect", connect)
            with pytest.raises(LookupError, match=f"^{seconds}$"):
                await stack.users(db).get_page()
            assert sync_engine(db).hide_parameters is (in_args is None)

    @pytest.mark.parametrize("stack", ["asyncpg", "psycopg"], indirect=True)
    async def test_your_isolation_level_holds_for_reads_too(self, stack: Stack) -> None:
        async with stack.context(isolation_level="REPEATABLE READ") as db, db.read_session() as session:
            level = await session.execute(select(func.current_setting("transaction_isolation")))
            assert level.scalar() == "repeatable read"

    def test_refuses_a_database_in_memory(self) -> None:
        spellings = ["", "/", "/:memory:", "/:memory:?cache=shared", "/file::memory:?uri=true", "/file:?uri=true"]
        for path in [*spellings, "/file:x?mode=memory&uri=true", "/file:/x?vfs=memdb&uri=true"]:
            for context, driver in ((DbContext, "sqlite"), (Db, "sqlite+aiosqlite")):
                with pytest.raises(ArgumentError, match="use a file"):
                    context(f"{driver}://{path}")

    def test_refuses_a_wrong_url_in_one_line_without_the_password(self) -> None:
        secret, passwords = "sesame", ("p@{}", "{}@/", "p@{}/", "p@12/{}", "p@12:{}", "p@{}?", "{}@[")
        urls = [f"postgresql+psycopg://user:{password}@host/name" for password in passwords]
        urls += ["my sql://user:{}@host", "user:{}@host", "nodriver://user:{}@host", "mysql://user:{}@host:port"]
        for url in [*urls, "postgresql+asyncpg://user:{}@host", "mysql+aiomysql://user:{}@host"]:
            with pytest.raises(ArgumentError, match=r"^[^\n]*$") as caught:
                DbContext(url.format(secret))
            shown = "".join(traceback.format_exception(caught.value)) + explain(caught.value, url.format(secret))
            assert secret not in shown, url
            assert ("is for DbContextAsync" in shown) == ("+a" in url)

    def test_never_shows_the_password_where_no_server_answers(self) -> None:
        for password in ("sesame", "12/sesame", "sesame/%40", "12:sesame", "?sesame#", "[sesame"):
            url = f"postgresql+psycopg://user:{password}@127.0.0.1:1/name"
            with DbContext(url) as db, pytest.raises(DBAPIError) as caught:
                db.engine.connect()
            assert "sesame" not in f"{caught.value!r} {db.engine!r} {explain(caught.value, url)}"
